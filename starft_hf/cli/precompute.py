"""`starft precompute`."""

import argparse
from dataclasses import asdict, replace
from typing import Any

from starft_hf.cli.arguments import TrainingParser, check_required, settings_of, training_parser
from starft_hf.cli.effects import no_effect_on_the_cache, warn_of_no_effect
from starft_hf.cli.output import show


SUMMARY = "fill the cache of the frozen reference for a later `starft train` with the same settings"


def make_parser(prog: str) -> TrainingParser:
    return training_parser(prog, SUMMARY)


def run(options: argparse.Namespace) -> None:
    from starft_hf.cli.data import load_training_data, run_arguments
    from starft_hf.training.plan import RunInputs
    from starft_hf.training.setup import RunSetup
    from starft_hf.training.unused_settings import without_unused

    check_required(options)
    args, arguments = settings_of(options), run_arguments(options)
    # How labels are read depends on the base loss.
    idle = [name for name in no_effect_on_the_cache() if name != "base_loss" or args.base_loss != "multi_label"]
    warn_of_no_effect(options, [args], idle)
    # Nothing is evaluated.
    options.eval_dataset, options.eval_split = None, [options.train_split]
    train = load_training_data(options).train
    # The data may say which column has captions.
    args = without_unused(settings_of(options), options.spuriosity)
    # Everything is written to the cache. A pool in output_dir would keep `starft train` from writing there.
    args = replace(args, save_strategy="no", load_best_model_at_end=False)
    setup = RunSetup.resolve(RunInputs(args=args, train_dataset=train, **arguments))
    weights, reference = setup.sample_weights, setup.reference
    if reference is None and weights is None:
        raise argparse.ArgumentTypeError("--regularizer none needs no reference, so there is nothing to compute")
    setup.prepare(args.device)
    content: dict[str, Any] = {}
    lines = []
    if weights is not None:
        assert weights.diagnostics is not None
        content["sample_weights"] = asdict(weights.diagnostics)
        lines.append(f"sample weights: {weights.diagnostics}")
    if reference is not None:
        info = reference.info
        content.update(asdict(info))
        size = f"{info.rows:,} embeddings, {info.bytes / 2**20:,.1f} MiB, in {info.where}"
        if info.captions_per_second is not None:
            size += f"; {info.captions_per_second:,.0f} captions/s"
        lines.append(f"{info.kind}: {size if info.rows else 'nothing is cached with these settings'}")
    show(options, content, *lines)
