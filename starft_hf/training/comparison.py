"""`compare`: fine-tunes a model with several methods and seeds, and reports the robustness of each."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from peft import PeftConfig
from torch import nn
from tqdm.auto import tqdm
from transformers import PrinterCallback

from starft_hf.data.class_mapping import check_mapped_sets
from starft_hf.evaluation.results import CurvePoint, EvaluationResult
from starft_hf.models.adapters import is_adapted
from starft_hf.models.loading import load_model, load_processor
from starft_hf.objectives.regularizers import NO_REGULARIZER
from starft_hf.report import RobustnessReport, Run, TrainingPoint
from starft_hf.report.mistakes import images_of_mistakes
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.plan import RunInputs, RunPlan
from starft_hf.training.processes import map_in_processes
from starft_hf.training.trainer import StarFTTrainer
from starft_hf.training.unused_settings import unused_names, without_unused
from starft_hf.utils.names import unknown_name
from starft_hf.weights.interpolation import check_alpha, mixed


ZERO_SHOT = "zero-shot"

# The settings of each method, added to those of the run.
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
class _Runner:
    """Runs methods on what they share. It is pickled for worker processes."""

    shared: RunInputs
    alpha: float | None
    alphas: frozenset[float]

    def __call__(self, job: tuple[str, StarFTConfig]) -> list[Run]:
        """The run of a method with its settings, and that of its interpolation with the zero-shot weights."""
        method, args = job
        shared = self.shared
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
            reference_model=shared.reference_model if _has_reference(args) and method != ZERO_SHOT else None,
            peft_config=copy.deepcopy(shared.peft_config) if method != ZERO_SHOT else None,
            class_mapping=shared.class_mapping,
        )
        # Without progress bars Trainer prints every metric.
        trainer.remove_callback(PrinterCallback)
        if method == ZERO_SHOT:
            return [Run(ZERO_SHOT, args.seed, evaluation_results(trainer))]
        # In a cross-entropy run this includes the head, which starts as the zero-shot classifier.
        start = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
        trainer.train()
        log = TrainingPoint.from_log_history(trainer.state.log_history)
        end = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
        found = {1.0: evaluation_results(trainer)}
        for alpha in self.alphas - {1.0}:
            trainer.model.load_state_dict({name: mixed(value, end[name], alpha) for name, value in start.items()})
            found[alpha] = evaluation_results(trainer)
        curve = [_curve_point(alpha, next(iter(results.values()))) for alpha, results in found.items()]
        runs = [Run(method, args.seed, found[1.0], log=log, curve=curve)]
        if self.alpha is not None:
            runs.append(Run(method, args.seed, found[self.alpha], interpolated=self.alpha))
        return runs


# Only the results of a run are kept.
_QUIET: dict[str, Any] = {"save_strategy": "no", "eval_strategy": "no", "push_to_hub": False, "disable_tqdm": True}


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
    reference_model: str | PathLike[str] | nn.Module | None = None,
    peft_config: PeftConfig | str | None = None,
    class_mapping: Any = None,
    processes: int = 1,
) -> RobustnessReport:
    """Fine-tune with every method and seed, with the same steps and order of the data, and compare.

    Args:
        model: the zero-shot model that every run starts from; it is not changed.
        args: the settings that all runs share. Nothing is saved to its output_dir or published.
        train_dataset: the training set, or a function that returns that of a seed.
        eval_dataset: one evaluation set or a dictionary of several. The report has thumbnails of the mistakes in them,
            and WiSE-FT curves of average against worst group on the first.
        methods: "zero-shot" and keys of `METHODS`.
        seeds: of the runs.
        alpha: weight of the fine-tuned model in an interpolated model, as in WiSE-FT, that is evaluated beside every
            fine-tuned one; None disables it.
        curve_alphas: further alphas, for the curves only.
        settings: further settings by method, such as `{"star": {"reg_weight": 30}}`; of methods that are compared.
        processing_class: the model's processor.
        spuriosity: the pool of the regularizers.
        reference_model: another reference than the model, as in `StarFTTrainer`.
        peft_config: trains an adapter in every run, as in `StarFTTrainer`. Adapters are not interpolated: pass
            `alpha=None`.
        class_mapping: of evaluation sets whose labels map to classes of the training set, as in `StarFTTrainer`.
        processes: number of parallel runs, on CPUs, each in a process of one thread. Arguments are then pickled, so
            functions must be defined in a module, and the caller guarded by `if __name__ == "__main__":`.

    Returns:
        The report of all runs.

    Raises:
        ValueError: before anything is trained, if a method or a setting of one is unknown, settings are for a method
            that is not compared, methods or seeds contain duplicates or are empty, a dataset is missing, or the
            settings of a method are inconsistent or do not fit the training set.
    """
    runs_asked = settings_of_methods(args, methods, seeds, settings)
    jobs = [(method, without_unused(own, spuriosity)) for method, own in runs_asked]
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be a positive integer")
    if eval_dataset is None or (isinstance(eval_dataset, dict) and not eval_dataset):
        raise ValueError("there is nothing to compare on; pass eval_dataset")
    check_mapped_sets(class_mapping, eval_dataset)
    if train_dataset is None and set(methods) != {ZERO_SHOT}:
        raise ValueError("there is nothing to train on; pass train_dataset")
    alphas = frozenset([*curve_alphas, *(() if alpha is None else (alpha,))])
    for each in alphas:
        check_alpha(each)
    adapted = peft_config is not None or (isinstance(model, nn.Module) and is_adapted(model))
    if alphas and adapted:
        raise ValueError(
            "a model with an adapter cannot be interpolated; merge the adapter first, or pass alpha=None and no "
            "curve_alphas"
        )
    data = (train_dataset, eval_dataset, processing_class, spuriosity)
    shared = RunInputs(model, args, *data, reference_model, peft_config, class_mapping=class_mapping)
    # A function is not called, because drawing a training set may be expensive.
    checked = dataclasses.replace(shared, train_dataset=None if callable(train_dataset) else train_dataset)
    if reference_model is not None and not any(_has_reference(own) for _, own in jobs):
        raise ValueError("reference_model has no effect: none of the methods has a reference; leave it out")
    for method, own in jobs:
        if method != ZERO_SHOT:
            reference = reference_model if _has_reference(own) else None
            pool = _used_pool(own, spuriosity)
            plan = RunPlan.check(dataclasses.replace(checked, args=own, spuriosity=pool, reference_model=reference))
            plan.check_adapter(own, adapted)
    if processes == 1:
        trusted = {"trust_remote_code": args.trust_remote_code}
        model = load_model(model, **trusted)
        reference_model = None if reference_model is None else load_model(reference_model, **trusted)
        shared = dataclasses.replace(shared, model=model, reference_model=reference_model)
    with tqdm(total=len(jobs), desc="Comparing", unit=" runs", disable=args.disable_tqdm) as bar:
        runs = _run_all(_Runner(shared, alpha, alphas), jobs, processes, bar)
    datasets = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
    first = next(iter(datasets))
    thumbnails = images_of_mistakes(runs, datasets, args.image_column)
    axes = (f"average on {first}", f"worst group on {first}")
    return RobustnessReport(_with_start(runs, first), thumbnails=thumbnails, curve_axes=axes)


def settings_of_methods(
    args: StarFTConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[tuple[str, StarFTConfig]]:
    """Every run of a comparison: its method and its settings. The arguments are those of `compare`, as its errors."""
    for method in [*methods, *(settings or {})]:
        if method != ZERO_SHOT and method not in METHODS:
            raise ValueError(unknown_name("method", method, [ZERO_SHOT, *METHODS]))
    for name, chosen in (("methods", list(methods)), ("seeds", list(seeds))):
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"{name} is {chosen}; pass at least one, without duplicates")
    known = [part.name for part in dataclasses.fields(args) if part.init]
    for method, own in (settings or {}).items():
        if method not in methods:
            raise ValueError(f"settings has {method!r}, which is not compared; add it to methods, or remove it")
        for name in own:
            if name not in known:
                raise ValueError(f"settings of {method!r}: {unknown_name('setting', name, known)}")
        if "seed" in own:
            raise ValueError(f"settings of {method!r} has a seed, but every method runs with each of seeds; remove it")
    runs = []
    for method in methods:
        own = {**_QUIET, **METHODS.get(method, METHODS["FLYP"]), **(settings or {}).get(method, {})}
        for seed in seeds if method != ZERO_SHOT else seeds[:1]:
            runs.append((method, dataclasses.replace(args, **{**own, "seed": seed})))
    return runs


def _used_pool(args: StarFTConfig, spuriosity: Any) -> Any:
    """The pool of a run, or the default for one that uses none, which would warn of another."""
    return "background" if "spuriosity" in unused_names(args, spuriosity) else spuriosity


def _has_reference(args: StarFTConfig) -> bool:
    return args.regularizer != NO_REGULARIZER or args.reweight != "none"


def _run_all(runner: _Runner, jobs: Sequence[tuple[str, StarFTConfig]], processes: int, bar: tqdm) -> list[Run]:
    if processes > 1:
        parts = map_in_processes(runner, jobs, processes, bar.update)
        return [run for part in parts for run in part]
    runs: list[Run] = []
    for job in jobs:
        bar.set_description(f"{job[0]}, seed {job[1].seed}")
        runs += runner(job)
        bar.update()
    return runs


def evaluation_results(trainer: StarFTTrainer) -> dict[str, EvaluationResult]:
    """The results of `trainer.evaluate()` on each of its evaluation sets, by name."""
    trainer.evaluation_results.clear()
    trainer.evaluate()
    return dict(trainer.evaluation_results)


def _curve_point(alpha: float, result: EvaluationResult) -> CurvePoint:
    return CurvePoint(alpha, result.accuracy, result.worst_group_accuracy)


def _with_start(runs: Sequence[Run], dataset: str) -> list[Run]:
    """The runs, with the zero-shot model, if it was evaluated, as the start of every curve."""
    start = [_curve_point(0.0, run.results[dataset]) for run in runs if run.method == ZERO_SHOT]
    return [
        dataclasses.replace(run, curve=[*start, *run.curve]) if run.curve and run.curve[0].alpha > 0 else run
        for run in runs
    ]
