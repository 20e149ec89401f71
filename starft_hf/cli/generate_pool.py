"""`starft generate-pool`."""

import argparse
from pathlib import Path
from typing import Any

from starft_hf.cli.command import add_trust, check_sources, given, positive_int, read_class_names, refuse
from starft_hf.cli.data import CLASS_NAMES_HELP
from starft_hf.cli.output import show
from starft_hf.utils.files import check_writable


SUMMARY = "generate the pool of a task with a language model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--domain", required=True, help='what the classifier is for, such as "birds in the wild"')
    parser.add_argument("--class_names", nargs="+", required=True, help=CLASS_NAMES_HELP)
    parser.add_argument("--output", type=Path, required=True, help="a new file, such as pool.json")
    group = parser.add_argument_group("language model", "an endpoint, a provider of the Hub, or a local model")
    group.add_argument("--base_url", help='OpenAI-compatible, such as "http://localhost:8000/v1"')
    group.add_argument("--provider", help="a provider of the Hub, or auto")
    group.add_argument("--llm", help="its name there, or the Hub id or folder of a local model")
    group.add_argument("--api_key_file", type=Path, help="file with the key of the endpoint")
    group.add_argument("--temperature", type=float, default=0.0, help="sampling temperature; 0 is greedy")
    group.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument("--aspects", nargs="+", help="what the templates are about")
    parser.add_argument("-n", "--n", type=positive_int, default=60, help="number of templates")
    parser.add_argument("--max_rounds", type=positive_int, default=4, help="requests to the language model")
    parser.add_argument("--model", help="the model to be fine-tuned; its text tower finds near-duplicates")
    add_trust(parser)


def run(options: argparse.Namespace) -> None:
    if options.base_url is not None and options.provider is not None:
        raise argparse.ArgumentTypeError("pass one of --base_url and --provider")
    if options.llm is None and options.base_url is None:
        raise argparse.ArgumentTypeError("pass --llm, --base_url or both, to choose the language model")
    if options.base_url is None and options.provider is None:
        refuse(options, ["api_key_file"], "--llm alone is a local model; pass --base_url or --provider as well")
    if options.api_key_file is not None and not options.api_key_file.is_file():
        raise argparse.ArgumentTypeError(f"there is no file --api_key_file {options.api_key_file}")
    if options.model is None:
        refuse(options, ["trust_remote_code"], "without --model no model is loaded")
    if options.output.exists():
        raise argparse.ArgumentTypeError(f"--output {options.output} exists, and is not overwritten; choose another")
    check_writable(options.output, "--output", is_file=True)
    check_sources(options, "model")
    options.class_names = read_class_names(options.class_names)
    from starft_hf import generate_pool

    names = (
        "domain",
        "class_names",
        "aspects",
        "n",
        "model",
        "temperature",
        "seed",
        "max_rounds",
        "trust_remote_code",
    )
    pool = generate_pool(backend=_backend(options), progress=not options.json, **given(options, *names))
    pool.save(options.output)
    content = {"output": str(options.output), "templates": list(pool)}
    show(options, content, *pool, f"{len(pool)} templates: {options.output}")


def _backend(options: argparse.Namespace) -> Any:
    from starft_hf.spuriosity.backends import ChatEndpoint, LocalChatModel

    if options.base_url is None and options.provider is None:
        return LocalChatModel(options.llm)
    # A key on the command line would be visible to every user of the machine.
    key = options.api_key_file.read_text(encoding="utf-8").strip() if options.api_key_file else None
    return ChatEndpoint(options.llm, base_url=options.base_url, provider=options.provider, api_key=key)
