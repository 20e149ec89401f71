"""Fine-tunes a model with several methods and several seeds, and reports how robust each came out."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback

from starft_hf.data.class_mapping import check_mapped_sets
from starft_hf.evaluation.results import CurvePoint, EvaluationResult
from starft_hf.models.adapters import is_adapted
from starft_hf.models.loading import load_model, load_processor
from starft_hf.objectives.regularizers import NO_REGULARIZER
from starft_hf.report import RobustnessReport, Run, TrainingPoint
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.plan import RunInputs, RunPlan
from starft_hf.training.processes import map_in_processes
from starft_hf.training.trainer import StarFTTrainer
from starft_hf.utils.names import unknown_name
from starft_hf.weights.interpolation import check_alpha, mixed


ZERO_SHOT = "zero-shot"

# The settings that make a method, on top of those of the run.
METHODS: dict[str, dict[str, Any]] = {
    "CE": {"base_loss": "cross_entropy", "regularizer": NO_REGULARIZER},
    "FLYP": {"regularizer": NO_REGULARIZER},
    "kl": {"regularizer": "kl"},
    "star": {"regularizer": "star"},
    "L2-SP": {"regularizer": "l2-sp", "reg_schedule": "constant"},
    "conditional": {"regularizer": "conditional"},
    "attribution": {"regularizer": NO_REGULARIZER, "reweight": "attribution"},
    "conditional + attribution": {"regularizer": "conditional", "reweight": "attribution"},
    "CAR-FT": {"regularizer": "car-ft", "reg_schedule": "constant"},
}


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the runs of a comparison have in common, and one of them. It is pickled where workers run it."""

    method: str
    seed: int
    model: Any
    args: StarFTConfig
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    spuriosity: Any
    alpha: float | None
    curve_alphas: tuple[float, ...]
    class_mapping: Any

    def make_trainer(self) -> StarFTTrainer:
        model = copy.deepcopy(load_model(self.model))
        trainer = StarFTTrainer(
            model,
            self.args,
            self.train_dataset(self.seed) if callable(self.train_dataset) else self.train_dataset,
            self.eval_dataset,
            processing_class=load_processor(model, self.processing_class),
            spuriosity=self.spuriosity,
            class_mapping=self.class_mapping,
        )
        # With its bars switched off Trainer prints every metric; the report stands for them.
        trainer.remove_callback(PrinterCallback)
        return trainer


# Nothing is kept of a run but its results.
_OF_EVERY_RUN: dict[str, Any] = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "push_to_hub": False,
    "disable_tqdm": True,
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
    curve_alphas: Sequence[float] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    processing_class: Any = None,
    spuriosity: SpuriosityPool | str | PathLike[str] | Sequence[str] = "background",
    class_mapping: Any = None,
    processes: int = 1,
    on_step: Callable[[str], None] | None = None,
) -> RobustnessReport:
    """Fine-tune with every method and every seed, with equal steps and order of the data, and compare.

    Args:
        model: the zero-shot model that every run starts from; it is left as it is.
        args: the settings that all runs share. Nothing is saved to its output_dir, nor published.
        train_dataset: the training set, or a function that gives that of a seed.
        eval_dataset: one evaluation set or a dictionary of several. The report has pictures of the mistakes in them,
            and WiSE-FT curves of average against worst group on the first.
        methods: "zero-shot" and keys of `METHODS`.
        seeds: of the runs.
        alpha: share of the fine-tuned weights in an interpolated model, as in WiSE-FT, that is evaluated beside every
            fine-tuned one; None leaves it out.
        curve_alphas: further shares, for the curves alone.
        settings: further settings by method, such as `{"star": {"reg_weight": 30}}`.
        processing_class: the model's processor.
        spuriosity: the pool of the regularizers.
        class_mapping: of evaluation sets whose labels stand for classes of the training set, as for `StarFTTrainer`.
        processes: runs at a time, on CPUs, each in a process of one thread. What is passed is then pickled, so
            functions have to be those of a module, and the caller guarded by `if __name__ == "__main__":`.
        on_step: called with the method after every optimiser step, in place of the progress bar.

    Returns:
        The report of all runs.

    Raises:
        ValueError: before anything is trained, if a method is unknown, a method or a seed is there twice, there is no
            seed or no data set, or the settings of a method do not go together or do not fit the training set.
    """
    for method in [*methods, *(settings or {})]:
        if method != ZERO_SHOT and method not in METHODS:
            raise ValueError(unknown_name("method", method, [ZERO_SHOT, *METHODS]))
    if not methods or not seeds:
        raise ValueError("methods or seeds is empty; pass at least one of each")
    for name, chosen in (("methods", list(methods)), ("seeds", list(seeds))):
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"{name} is {chosen}, in which one is there twice; pass each of them once")
    shares = (*curve_alphas, *(() if alpha is None else (alpha,)))
    for share in shares:
        check_alpha(share)
    if processes < 1:
        raise ValueError(f"processes is {processes}; pass how many runs there may be at a time, from 1")
    if eval_dataset is None or (isinstance(eval_dataset, dict) and not eval_dataset):
        raise ValueError("there is nothing to compare on; pass eval_dataset")
    check_mapped_sets(class_mapping, eval_dataset)
    if train_dataset is None and set(methods) != {ZERO_SHOT}:
        raise ValueError("there is nothing to train on; pass train_dataset")
    if shares and isinstance(model, nn.Module) and is_adapted(model):
        raise ValueError(
            "a model with an adapter cannot be interpolated; merge the adapter first, or pass alpha=None and no "
            "curve_alphas"
        )
    if processes == 1:
        model = load_model(model)
    jobs = []
    for method in methods:
        own = {**METHODS.get(method, METHODS["FLYP"]), **(settings or {}).get(method, {})}
        for seed in seeds if method != ZERO_SHOT else seeds[:1]:
            run_args = dataclasses.replace(args, **{**_OF_EVERY_RUN, "seed": seed, **own})
            shared = (model, run_args, train_dataset, eval_dataset, processing_class, spuriosity)
            jobs.append(_Job(method, seed, *shared, alpha, tuple(curve_alphas), class_mapping))
    for job in jobs:
        _check_job(job)
    runs = _run_all(jobs, processes, on_step, show=not args.disable_tqdm)
    datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    first = next(iter(datasets))
    return RobustnessReport(
        _with_start(runs, first),
        thumbnails={name: _mistaken_images(runs, name, part, args.image_column) for name, part in datasets.items()},
        curve_axes=(f"average on {first}", f"worst group on {first}"),
    )


def _check_job(job: _Job) -> None:
    """Check what would otherwise fail after other methods have been trained."""
    if job.method == ZERO_SHOT:
        return
    # A function may draw the training set, which is as expensive as it likes to be.
    train_dataset = None if callable(job.train_dataset) else job.train_dataset
    RunPlan.check(RunInputs(job.model, job.args, train_dataset, job.eval_dataset, spuriosity=job.spuriosity))


def _run_all(jobs: Sequence[_Job], processes: int, on_step: Callable[[str], None] | None, *, show: bool) -> list[Run]:
    with tqdm(total=len(jobs), unit="run", disable=not show or on_step is not None) as bar:
        shown: _Job | None = None

        def advance(job: _Job) -> None:
            nonlocal shown
            # To set it draws the bar, and notebooks and log files keep all that was drawn.
            if job is not shown:
                bar.set_description(f"{job.method}, seed {job.seed}")
                shown = job
            if on_step is not None:
                on_step(job.method)

        if processes > 1:
            parts = map_in_processes(_run_job, jobs, processes, advance)
            return [run for part in parts for run in part]
        runs: list[Run] = []
        for job in jobs:
            runs += _run_job(job, partial(advance, job))
            bar.update()
        return runs


def _run_job(job: _Job, notify: Callable[[], None]) -> list[Run]:
    """One run: what the method gives with a seed, and what models on the way back to the zero-shot weights give."""
    trainer = job.make_trainer()
    if job.method == ZERO_SHOT:
        return [Run(ZERO_SHOT, job.seed, evaluation_results(trainer))]
    trainer.add_callback(_StepCallback(notify))
    # Of a cross-entropy run this includes the head, which starts as the zero-shot classifier.
    start = _weights(trainer)
    trainer.train()
    log = TrainingPoint.from_log_history(trainer.state.log_history)
    end = _weights(trainer)
    found = {1.0: evaluation_results(trainer)}
    for alpha in {*job.curve_alphas, *(() if job.alpha is None else (job.alpha,))} - {1.0}:
        trainer.model.load_state_dict(dict(_interpolated(start, end, alpha)))
        found[alpha] = evaluation_results(trainer)
    curve = [_curve_point(alpha, next(iter(results.values()))) for alpha, results in found.items()]
    runs = [Run(job.method, job.seed, found[1.0], log=log, curve=curve)]
    if job.alpha is not None:
        runs.append(Run(job.method, job.seed, found[job.alpha], interpolated=job.alpha))
    return runs


class _StepCallback(TrainerCallback):
    def __init__(self, notify: Callable[[], None]):
        self.notify = notify

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.notify()


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
        yield name, mixed(value, end[name], alpha)


def _curve_point(alpha: float, result: EvaluationResult) -> CurvePoint:
    return CurvePoint(alpha, result.accuracy, result.worst_group_accuracy)


def _with_start(runs: Sequence[Run], dataset: str) -> list[Run]:
    """The runs, with the zero-shot model, where it was evaluated, as the beginning of every curve."""
    start = [_curve_point(0.0, run.results[dataset]) for run in runs if run.method == ZERO_SHOT]
    return [
        dataclasses.replace(run, curve=[*start, *run.curve]) if run.curve and run.curve[0].alpha > 0 else run
        for run in runs
    ]


def _mistaken_images(runs: Sequence[Run], name: str, dataset: Any, image_column: str) -> dict[int, Any]:
    samples = {mistake.sample for run in runs for mistake in run.results[name].mistakes}
    return {sample: dataset[sample][image_column] for sample in sorted(samples)}
