"""The data sets and the trainer that a command's options name."""

import argparse
from typing import Any


def load_training_data(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The training set, and the evaluation set under its name, or nothing where there is none."""
    from starft_hf.data.loading import choose_split, evaluation_split

    splits = _load(options, options.dataset, options.streaming)
    train = choose_split(splits, options.train_split, options.dataset)
    source, evaluated = options.dataset, splits
    if options.eval_dataset is not None:
        source, evaluated = options.eval_dataset, _load(options, options.eval_dataset, False)
    elif options.streaming:
        # A stream cannot be counted; what is evaluated is read as a whole.
        evaluated = _load(options, options.dataset, False)
    name = options.eval_split or evaluation_split(evaluated)
    if name is None and options.eval_dataset is not None:
        name = next(iter(evaluated))
    if name is None:
        return train, {}
    return train, {name: choose_split(evaluated, name, source)}


def _load(options: argparse.Namespace, source: str, streaming: bool) -> Any:
    from starft_hf.data.loading import load_splits

    return load_splits(
        source,
        options.dataset_config if source == options.dataset else None,
        image_column=options.image_column,
        label_column=options.label_column,
        streaming=streaming,
    )


def make_trainer(options: argparse.Namespace, args: Any, train: Any, evaluation: dict[str, Any]) -> Any:
    """The trainer of the options."""
    from starft_hf import StarFTTrainer

    return StarFTTrainer(
        options.model,
        args,
        train,
        evaluation or None,
        spuriosity=options.spuriosity,
        reference_model=options.reference_model,
        peft_config=options.peft,
    )
