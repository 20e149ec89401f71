"""`starft generate-pool`."""

import argparse
from pathlib import Path
from typing import Any

from starft_hf.cli.command import Command, positive_int


class GeneratePoolCommand(Command):
    """Has a language model write a pool for a task."""

    name = "generate-pool"
    summary = "have a language model write the pool of a task"

    def make_parser(self, prog: str) -> argparse.ArgumentParser:
        parser = super().make_parser(prog)
        parser.add_argument("--domain", required=True, help='what the classifier is for, such as "birds in the wild"')
        parser.add_argument("--class-names", "--class_names", nargs="+", required=True)
        parser.add_argument("--output", type=Path, required=True, help="a new file, such as pool.json")
        asked = parser.add_argument_group(
            "language model", "an endpoint, a provider of the Hub, or one on this machine"
        )
        asked.add_argument("--base-url", "--base_url", help='OpenAI-compatible, such as "http://localhost:8000/v1"')
        asked.add_argument("--provider", help="a provider of the Hub, or auto")
        asked.add_argument("--llm", help="its name there, or the Hub id or folder of a model to run here")
        asked.add_argument("--api-key-file", "--api_key_file", type=Path, help="file with the key of the endpoint")
        asked.add_argument("--temperature", type=float, default=0.0)
        asked.add_argument("--seed", type=int, default=0)
        parser.add_argument("--aspects", nargs="+", help="what the templates are about")
        parser.add_argument("-n", type=positive_int, default=60, help="templates wanted (default: 60)")
        parser.add_argument("--max-rounds", "--max_rounds", type=positive_int, default=4)
        parser.add_argument("--model", help="the model to be fine-tuned, by which near-duplicates are found")
        return parser

    def run(self, options: argparse.Namespace) -> None:
        if options.base_url is not None and options.provider is not None:
            raise argparse.ArgumentTypeError("pass one of --base-url and --provider")
        if options.llm is None and options.base_url is None:
            raise argparse.ArgumentTypeError("pass --llm, --base-url or both, to say which language model to ask")
        if options.output.exists():
            raise argparse.ArgumentTypeError(f"{options.output} exists, and nothing is overwritten")
        from starft_hf import generate_pool
        from starft_hf.cli.output import print_json

        pool = generate_pool(
            domain=options.domain,
            class_names=options.class_names,
            n=options.n,
            backend=_backend(options),
            model=options.model,
            temperature=options.temperature,
            seed=options.seed,
            max_rounds=options.max_rounds,
            progress=not options.json,
            **({"aspects": options.aspects} if options.aspects else {}),
        )
        pool.save(options.output)
        if options.json:
            print_json({"output": str(options.output), "templates": list(pool)})
            return
        for template in pool:
            print(template)
        print(f"{len(pool)} templates: {options.output}")


def _backend(options: argparse.Namespace) -> Any:
    from starft_hf.spuriosity.backends import ChatEndpoint, LocalChatModel

    if options.base_url is None and options.provider is None:
        return LocalChatModel(options.llm)
    # A key on the command line could be read by everybody on the machine.
    key = options.api_key_file.read_text(encoding="utf-8").strip() if options.api_key_file else None
    return ChatEndpoint(options.llm, base_url=options.base_url, provider=options.provider, api_key=key)
