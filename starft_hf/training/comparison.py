"""`compare`: fine-tunes a model with several methods and seeds, and reports the robustness of each."""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from os import PathLike
from typing import Any

import pandas as pd
from peft import PeftConfig
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from starft_hf.data.class_mapping import check_mapped_sets
from starft_hf.evaluation.results import AnyResult, CurvePoint, EvaluationResult, classification_results
from starft_hf.evaluation.validation import check_positive
from starft_hf.models.adapters import has_quantized_weights, is_adapted
from starft_hf.models.loading import load_model, load_processor
from starft_hf.objectives.regularizers import NO_REGULARIZER
from starft_hf.report import RobustnessReport, Run, TrainingPoint
from starft_hf.report.mistakes import images_of_mistakes
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.training.about import about_run
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.methods import ZERO_SHOT, Methods, settings_of_methods
from starft_hf.training.multi_label import refuse_multi_label
from starft_hf.training.plan import RunInputs, RunPlan
from starft_hf.training.processes import map_in_processes
from starft_hf.training.repairs import Repairs, with_repairs
from starft_hf.training.trackers import (
    TrackerReport,
    own_run,
    remove_trackers,
    send_results,
    warn_of_trackers,
    without_folders,
)
from starft_hf.training.trainer import StarFTTrainer
from starft_hf.training.training_rows import training_subset
from starft_hf.training.unused_settings import unused_names, without_unused
from starft_hf.utils.text import without_paths
from starft_hf.weights.interpolation import check_alpha, mixed


@dataclasses.dataclass(frozen=True)
class _Runner:
    """Runs methods on what they share. It is pickled for worker processes."""

    shared: RunInputs
    alpha: float | None
    alphas: frozenset[float]
    repairs: Repairs

    def __call__(self, job: tuple[str, StarFTConfig]) -> list[Run]:
        """The run of a method with its settings, and that of its interpolation with the zero-shot weights."""
        method, args = job
        trainer = trainer_of(self.shared, args, trains=method != ZERO_SHOT)
        if method == ZERO_SHOT:
            runs = [Run(ZERO_SHOT, args.seed, evaluation_results(trainer))]
            return [*runs, *self.repairs.runs(method, trainer, self.shared)]
        start = weights_of(trainer)
        with own_run(trainer, run_label(method, args)):
            trainer.train()
        repaired = self.repairs.runs(method, trainer, self.shared)
        log = TrainingPoint.from_log_history(trainer.state.log_history)
        found = results_by_alpha(trainer, start, self.alphas | {1.0})
        classified = {alpha: classification_results(results) for alpha, results in found.items()}
        curve = [curve_point(alpha, next(iter(part.values()))) for alpha, part in classified.items() if part]
        runs = [Run(method, args.seed, found[1.0], log=log, curve=curve)]
        if self.alpha is not None:
            runs.append(Run(method, args.seed, found[self.alpha], interpolated=self.alpha))
        return [*runs, *repaired]


def trainer_of(
    shared: RunInputs, args: StarFTConfig, *, trains: bool = True, callbacks: list[TrainerCallback] | None = None
) -> StarFTTrainer:
    """A trainer of the model that several runs start from; `trains` is False for the zero-shot model itself."""
    trusted = {"trust_remote_code": args.trust_remote_code}
    model = copy.deepcopy(load_model(shared.model, **trusted))
    trainer = StarFTTrainer(
        model,
        args,
        shared.train_dataset(args.seed) if callable(shared.train_dataset) else shared.train_dataset,
        shared.eval_dataset,
        processing_class=load_processor(model, shared.processing_class, **trusted),
        spuriosity=_used_pool(args, shared.spuriosity),
        # Plain fine-tuning and the zero-shot model have no reference.
        reference_model=shared.reference_model if _has_reference(args) and trains else None,
        peft_config=copy.deepcopy(shared.peft_config) if trains else None,
        class_mapping=shared.class_mapping,
        callbacks=callbacks,
    )
    # Without progress bars Trainer prints every metric. The report of a comparison is that of all its runs.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(TrackerReport)
    if not trains:
        remove_trackers(trainer)
    return trainer


def weights_of(trainer: StarFTTrainer) -> dict[str, Tensor]:
    """A copy of the weights; before a cross-entropy run this includes the head, which is the zero-shot classifier."""
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def merged_weights_of(trainer: StarFTTrainer) -> dict[str, Tensor]:
    """A copy of the weights that can be interpolated, for which an adapter of the model is merged."""
    if is_adapted(trainer.model):
        # Averaging the factors of adapters does not average models.
        trainer.model.merge_adapter()
    return weights_of(trainer)


def interpolate_with(
    trainer: StarFTTrainer, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float
) -> None:
    """Give the model of `trainer` the weights between those of `start`, at alpha 0, and `end`."""
    trainer.model.load_state_dict({name: mixed(value, end[name], alpha) for name, value in start.items()})


def results_by_alpha(
    trainer: StarFTTrainer, start: Mapping[str, Tensor], alphas: Iterable[float]
) -> dict[float, dict[str, AnyResult]]:
    """The results of the models between `start` and what `trainer` has trained, by the weight of the latter.

    The model of `trainer` is not what was trained afterwards, and an adapter of it is merged.
    """
    found = {1.0: evaluation_results(trainer)} if 1.0 in (alphas := set(alphas)) else {}
    end = merged_weights_of(trainer)
    for alpha in sorted(alphas - {1.0}, reverse=True):
        interpolate_with(trainer, start, end, alpha)
        found[alpha] = evaluation_results(trainer)
    return found


def compare(
    model: str | PathLike[str] | nn.Module,
    args: StarFTConfig,
    train_dataset: Any,
    eval_dataset: Any,
    *,
    methods: Methods = (ZERO_SHOT, "CE", "FLYP", "kl", "star"),
    seeds: Sequence[int] = (0,),
    alpha: float | None = 0.5,
    curve_alphas: Sequence[float] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    processing_class: Any = None,
    spuriosity: SpuriosityPool | str | PathLike[str] | Sequence[str] = "background",
    reference_model: str | PathLike[str] | nn.Module | None = None,
    peft_config: PeftConfig | str | None = None,
    class_mapping: Any = None,
    repair_dataset: Any = None,
    repair_cluster_column: str | None = None,
    processes: int = 1,
) -> RobustnessReport:
    """Fine-tune with every method and seed, with the same steps and order of the data, and compare.

    Args:
        model: the zero-shot model that every run starts from; it is not changed.
        args: the settings that all runs share. Nothing is saved to its output_dir or published. With `report_to`,
            every training is a run of its own in trackers, and W&B and Trackio get the report as a further one.
        train_dataset: the training set, or a function that returns that of a seed.
        eval_dataset: one evaluation set or a dictionary of several. The report has thumbnails of the mistakes in them,
            and WiSE-FT curves of average against worst group on the first whose images are classified.
        methods: "zero-shot" and keys of `METHODS`, also with a weight, as in "kl@10"; or a dictionary by any name of
            settings, of which "method" is one of these: `{"kl, slow": {"method": "kl", "learning_rate": 1e-6}}`. The
            defaults are `{"defaults": {"regularizer": "auto"}}`; "kl" by itself has no plain captions. In a
            list, a method may be followed by one of `repair`, as in "FLYP + last layer" or "kl + projection", or by
            "repair", which takes the best of them or none: the run of the method is repaired on `repair_dataset`.
        seeds: seeds of the runs.
        alpha: weight of the fine-tuned model in an interpolated model, as in WiSE-FT, that is evaluated beside every
            fine-tuned one; None disables it.
        curve_alphas: further alphas, for the curves only.
        settings: further settings by method, such as `{"star": {"reg_weight": 30}}`, where methods are a list; of
            methods that are compared. Those of "kl" are also of "kl@10".
        processing_class: the model's processor.
        spuriosity: the pool of the regularizers.
        reference_model: a reference other than the model, as in `StarFTTrainer`.
        peft_config: trains an adapter in every run, as in `StarFTTrainer`.
        class_mapping: of evaluation sets whose labels map to classes of the training set, as in `StarFTTrainer`.
        repair_dataset: the validation set that repairs are fitted to and chosen on, of which nothing else is reported.
        repair_cluster_column: a column of it that says which images belong together, as `repair` takes it.
        processes: number of parallel runs, on CPUs, each in a process of one thread. Arguments are then pickled, so
            functions must be defined in a module, and the caller guarded by `if __name__ == "__main__":`.

    Returns:
        The report of all runs.

    Raises:
        ValueError: before anything is trained, if a method or a setting of one is unknown, settings are for a method
            that is not compared, methods or seeds contain duplicates or are empty, a dataset is missing, or the
            settings of a method are inconsistent or do not fit the training set.
    """
    methods, repairs = with_repairs(methods, repair_dataset, repair_cluster_column)
    runs_asked = settings_of_methods(args, methods, seeds, settings)
    jobs = [(method, without_unused(own, spuriosity)) for method, own in runs_asked]
    for _, own in runs_asked:
        refuse_multi_label(own, "compare")
    check_positive("processes", processes)
    if eval_dataset is None or (isinstance(eval_dataset, dict) and not eval_dataset):
        raise ValueError("there is nothing to compare on; pass eval_dataset")
    check_mapped_sets(class_mapping, eval_dataset)
    if train_dataset is None and set(methods) != {ZERO_SHOT}:
        raise ValueError("there is nothing to train on; pass train_dataset")
    alphas = frozenset([*curve_alphas, *(() if alpha is None else (alpha,))])
    for each in alphas:
        check_alpha(each)
    adapted = peft_config is not None or (isinstance(model, nn.Module) and is_adapted(model))
    repairs.check(args)
    data = (train_dataset, eval_dataset, processing_class, spuriosity)
    shared = RunInputs(model, args, *data, reference_model, peft_config, class_mapping=class_mapping)
    # A function is not called, because drawing a training set may be expensive.
    checked = dataclasses.replace(shared, train_dataset=None if callable(train_dataset) else train_dataset)
    if reference_model is not None and not any(_has_reference(own) for _, own in jobs):
        raise ValueError("reference_model has no effect: none of the methods has a reference; leave it out")
    check_runs(checked, jobs, adapted)
    warn_of_trackers(args, "compare")
    called = args.run_name or f"comparison {datetime.now():%Y-%m-%d %H:%M:%S}"
    jobs = [(method, dataclasses.replace(own, run_name=called)) for method, own in jobs]
    if processes == 1:
        trusted = {"trust_remote_code": args.trust_remote_code}
        model = load_model(model, **trusted)
        repairs.check_model(model)
        reference_model = None if reference_model is None else load_model(reference_model, **trusted)
        shared = dataclasses.replace(shared, model=model, reference_model=reference_model)
    if alphas and isinstance(model, nn.Module) and has_quantized_weights(model):
        raise ValueError(
            "interpolated models would mix weights, and those of the model are quantized; pass alpha=None and no "
            "curve_alphas, or load the model in full precision"
        )
    with runs_bar(len(jobs), "Comparing", args.disable_tqdm) as bar:
        runs = _run_all(_Runner(shared, alpha, alphas, repairs), jobs, processes, bar)
    runs = [run for run in runs if run.method not in repairs.only_repaired]
    datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    first = next(iter(classification_results(runs[0].results)), None)
    thumbnails = images_of_mistakes(runs, datasets, args.image_column)
    axes = (f"average on {first}", f"worst group on {first}")
    trained_on = train_dataset if callable(train_dataset) else training_subset(args, train_dataset)
    about = about_run(args, shared.model, trained_on, args.class_names)
    report = RobustnessReport(_with_start(runs, first), thumbnails=thumbnails, curve_axes=axes, about=about)
    _send(args, called, report)
    return report


def _send(args: StarFTConfig, called: str, report: RobustnessReport) -> None:
    """Send the report to trackers, without images, which may be private, and without the paths of datasets."""
    runs = [dataclasses.replace(run, results=without_folders(run.results)) for run in report.runs]
    axes = (without_paths(report.curve_axes[0]), without_paths(report.curve_axes[1]))
    shown = RobustnessReport(runs, curve_axes=axes, about=report.about)
    send_results(args, called, report_tables(runs), shown.save)


def report_tables(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """The main figures of all runs on all datasets, and their accuracies by group, for trackers."""
    models: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    for run in runs:
        about = {"method": run.method, "alpha": run.interpolated, "seed": run.seed}
        for dataset, result in run.results.items():
            figures: dict[str, float] = result.headline
            if isinstance(result, EvaluationResult):
                figures = {name: getattr(result, name) for name in ("accuracy", "worst_group_accuracy", "ece")}
            models.append({"dataset": dataset, **about, **figures})
        for dataset, part in run.classified.items():
            for group, accuracy in part.group_accuracies.items():
                own = {"group": group, "images": part.group_sizes[group], "accuracy": accuracy}
                groups.append({"dataset": dataset, **about, **own})
    tables = {"models": pd.DataFrame(models), "groups": pd.DataFrame(groups)}
    return {name: table for name, table in tables.items() if len(table)}


def check_runs(shared: RunInputs, jobs: Iterable[tuple[str, StarFTConfig]], adapted: bool) -> None:
    """Check what is known of runs before anything is loaded; `adapted` if they train an adapter."""
    for method, args in jobs:
        if method != ZERO_SHOT:
            reference = shared.reference_model if _has_reference(args) else None
            pool = _used_pool(args, shared.spuriosity)
            plan = RunPlan.check(dataclasses.replace(shared, args=args, spuriosity=pool, reference_model=reference))
            plan.check_adapter(args, adapted)


def _used_pool(args: StarFTConfig, spuriosity: Any) -> Any:
    """The pool of a run, or the default for one that uses none, which would warn of another."""
    return "background" if "spuriosity" in unused_names(args, spuriosity) else spuriosity


def _has_reference(args: StarFTConfig) -> bool:
    return args.regularizer != NO_REGULARIZER or args.reweight != "none"


def run_label(method: str, args: StarFTConfig) -> str:
    """The name of a run in the progress bar and in trackers."""
    return f"{method}, seed {args.seed}"


@contextmanager
def runs_bar(total: int, what: str, disable: bool) -> Iterator[tqdm]:
    """A progress bar of runs, within which transformers shows none of its own, which would break it."""
    hook = logging.set_tqdm_hook(lambda factory, args, kwargs: logging.EmptyTqdm(*args, **kwargs))
    try:
        with tqdm(total=total, desc=what, unit=" runs", disable=disable) as bar:
            yield bar
    finally:
        logging.set_tqdm_hook(hook)


def _run_all(runner: _Runner, jobs: Sequence[tuple[str, StarFTConfig]], processes: int, bar: tqdm) -> list[Run]:
    if processes > 1:
        parts = map_in_processes(runner, jobs, processes, bar.update)
        return [run for part in parts for run in part]
    runs: list[Run] = []
    for job in jobs:
        bar.set_description(run_label(*job))
        runs += runner(job)
        bar.update()
    return runs


def evaluation_results(trainer: StarFTTrainer) -> dict[str, AnyResult]:
    """The results of `trainer.evaluate()` on each of its evaluation sets, by name."""
    trainer.evaluation_results.clear()
    trainer.evaluate()
    return dict(trainer.evaluation_results)


def curve_point(alpha: float, result: EvaluationResult) -> CurvePoint:
    return CurvePoint(alpha, result.accuracy, result.worst_group_accuracy)


def _with_start(runs: Sequence[Run], dataset: str | None) -> list[Run]:
    """The runs, with the zero-shot model, if it was evaluated on what curves are of, as the start of every curve."""
    zero_shot = [classification_results(run.results) for run in runs if run.method == ZERO_SHOT]
    start = [curve_point(0.0, results[dataset]) for results in zero_shot if dataset is not None]
    return [
        dataclasses.replace(run, curve=[*start, *run.curve]) if run.curve and run.curve[0].alpha > 0 else run
        for run in runs
    ]
