"""Fine-tunes a model with several methods and several seeds, and reports how robust each came out."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import TrainerCallback

from starft_hf.configuration import StarFTConfig
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.models import load_model, load_processor
from starft_hf.names import unknown_name
from starft_hf.regularizers import NO_REGULARIZER
from starft_hf.report import RobustnessReport, Run, TrainingPoint
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.trainer import StarFTTrainer


ZERO_SHOT = "zero-shot"

# The settings that make a method, on top of those of the run.
METHODS: dict[str, dict[str, Any]] = {
    "CE": {"base_loss": "cross_entropy", "regularizer": NO_REGULARIZER},
    "FLYP": {"regularizer": NO_REGULARIZER},
    "kl": {"regularizer": "kl"},
    "star": {"regularizer": "star"},
    "L2-SP": {"regularizer": "l2-sp", "reg_schedule": "constant"},
    "CAR-FT": {"regularizer": "car-ft", "reg_schedule": "constant"},
}


def compare(
    model: str | PathLike[str] | nn.Module,
    args: StarFTConfig,
    train_dataset: Any,
    eval_dataset: Any,
    *,
    methods: Sequence[str] = (ZERO_SHOT, "CE", "FLYP", "kl", "star"),
    seeds: Sequence[int] = (0,),
    alpha: float | None = 0.5,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    processing_class: Any = None,
    spuriosity: SpuriosityPool | str | PathLike[str] | Sequence[str] = "background",
) -> RobustnessReport:
    """Fine-tune with every method and every seed, with equal steps and order of the data, and compare.

    Args:
        model: the zero-shot model that every run starts from; it is left as it is.
        args: the settings that all runs share. Nothing is saved to its output_dir.
        train_dataset: the training set.
        eval_dataset: one evaluation set or a dictionary of several.
        methods: "zero-shot" and keys of `METHODS`.
        seeds: of the runs.
        alpha: share of the fine-tuned weights in an interpolated model, as in WiSE-FT, that is evaluated beside every
            fine-tuned one; None leaves it out.
        settings: further settings by method, such as `{"star": {"reg_weight": 30}}`.
        processing_class: the model's processor.
        spuriosity: the pool of the regularizers.

    Returns:
        The report of all runs.

    Raises:
        ValueError: if a method is unknown, before anything is trained.
    """
    for method in [*methods, *(settings or {})]:
        if method != ZERO_SHOT and method not in METHODS:
            raise ValueError(unknown_name("method", method, [ZERO_SHOT, *METHODS]))
    model = load_model(model)
    processing_class = load_processor(model, processing_class)
    jobs = [(method, seed) for method in methods for seed in (seeds if method != ZERO_SHOT else seeds[:1])]
    runs: list[Run] = []
    with tqdm(jobs, unit="run", disable=args.disable_tqdm) as bar:
        for method, seed in bar:
            bar.set_description(f"{method}, seed {seed}")

            def make(method: str = method, seed: int = seed) -> StarFTTrainer:
                own: dict[str, Any] = {"seed": seed, "save_strategy": "no", "eval_strategy": "no"}
                own |= {**METHODS.get(method, METHODS["FLYP"]), **(settings or {}).get(method, {})}
                return StarFTTrainer(
                    copy.deepcopy(model),
                    dataclasses.replace(args, **own),
                    train_dataset,
                    eval_dataset,
                    processing_class=processing_class,
                    spuriosity=spuriosity,
                )

            runs += run_method(method, seed, make, alpha)
    return RobustnessReport(runs)


def run_method(
    method: str,
    seed: int,
    make_trainer: Callable[[], StarFTTrainer],
    alpha: float | None = 0.5,
    callback: TrainerCallback | None = None,
) -> list[Run]:
    """One run: what the method gives with a seed, and what half-way back to the zero-shot weights gives.

    Args:
        method: "zero-shot", which only evaluates, or any name.
        seed: of the run.
        make_trainer: makes the trainer, with the zero-shot model and the evaluation sets.
        alpha: share of the fine-tuned weights in the interpolated model; None leaves it out.
        callback: a further callback of the training.
    """
    trainer = make_trainer()
    if method == ZERO_SHOT:
        return [Run(ZERO_SHOT, seed, evaluation_results(trainer))]
    if callback is not None:
        trainer.add_callback(callback)
    # Of a cross-entropy run this includes the head, which starts as the zero-shot classifier.
    start = _weights(trainer)
    trainer.train()
    log = TrainingPoint.from_log_history(trainer.state.log_history)
    runs = [Run(method, seed, evaluation_results(trainer), log=log)]
    if alpha is not None:
        end = _weights(trainer)
        trainer.model.load_state_dict(dict(_interpolated(start, end, alpha)))
        runs.append(Run(method, seed, evaluation_results(trainer), interpolated=alpha))
        trainer.model.load_state_dict(end)
    return runs


def evaluation_results(trainer: StarFTTrainer) -> dict[str, EvaluationResult]:
    """What `trainer.evaluate()` finds on each of its evaluation sets, by name."""
    trainer.evaluation_results.clear()
    trainer.evaluate()
    return dict(trainer.evaluation_results)


def _weights(trainer: StarFTTrainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def _interpolated(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float
) -> Iterator[tuple[str, Tensor]]:
    for name, value in start.items():
        yield name, torch.lerp(value, end[name].to(value), alpha) if value.is_floating_point() else end[name]
