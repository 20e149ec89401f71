"""Repairs of the runs of a comparison: "FLYP + last layer" is the run of FLYP with its last layer fitted again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import send_to_device
from torch import nn

from starft_hf.data.columns import ColumnSettings, resolve_evaluation_columns
from starft_hf.evaluation.loop import evaluation_of, training_group_shares
from starft_hf.evaluation.results import AnyResult
from starft_hf.hub.classifier import Classifier
from starft_hf.models.adapters import base_model_of
from starft_hf.models.fsdp import forget_dataloader
from starft_hf.models.heads import select_classes
from starft_hf.models.loading import load_model
from starft_hf.models.modes import evaluation_mode
from starft_hf.report import Run
from starft_hf.spuriosity.auto import given_pool, is_auto
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.methods import ZERO_SHOT, Methods
from starft_hf.training.plan import RunInputs
from starft_hf.training.trainer import StarFTTrainer
from starft_hf.weights.repair import repair
from starft_hf.weights.repair.candidates import DFR, METHODS, NEEDS_POOL, NEEDS_START
from starft_hf.weights.repair.labeled import check_validation_set
from starft_hf.weights.repair.projections import why_not_foldable
from starft_hf.weights.repair.repairing import check_numbers_of, checked_clusters


# The best of all, or none.
REPAIR = "repair"
_NAMES = (REPAIR, *METHODS[1:])
_PLUS = " + "


@dataclasses.dataclass(frozen=True)
class Repairs:
    """What is repaired in a comparison.

    Attributes:
        by_method: names of repairs by the label of the method whose run is repaired.
        dataset: the validation set; None without repairs.
        only_repaired: labels of methods that were not asked for without a repair.
        cluster_column: of the dataset, as `repair` takes it.
    """

    by_method: Mapping[str, Sequence[str]]
    dataset: Any = None
    only_repaired: frozenset[str] = frozenset()
    cluster_column: str | None = None

    def check(self, args: StarFTConfig) -> None:
        """Check, before anything is loaded, that there is a validation set if there are repairs, and only then.

        Raises:
            ValueError: if not, or if it has other columns than the training set or too few images.
        """
        if self.dataset is None and self.by_method:
            raise ValueError(
                f"methods has repairs, such as {self.example!r}, which are fitted to validation images; pass "
                "repair_dataset, a split that is neither trained nor reported on"
            )
        if self.dataset is not None and not self.by_method:
            raise ValueError(
                f"repair_dataset has no effect: none of methods ends with a repair, as 'FLYP{_PLUS}{REPAIR}' does; "
                "leave it out"
            )
        if self.cluster_column is not None and not self.by_method:
            raise ValueError("repair_cluster_column has no effect: none of methods ends with a repair; leave it out")
        if self.by_method:
            check_validation_set(self.dataset)
            columns = resolve_evaluation_columns(self.dataset, _columns(args), what="repair_dataset")
            _, labels, _ = check_numbers_of(self.dataset, columns, None, has_pool=False)
            checked_clusters(self.dataset, self.cluster_column, labels, columns.class_names or ())
            names = {name for own in self.by_method.values() for name in own}
            if DFR in names and columns.groups is None:
                raise ValueError(f"{DFR!r} balances groups, and there are none; set group_column, or remove it")
            for name in self.by_method.get(ZERO_SHOT, ()):
                if name in NEEDS_START:
                    raise ValueError(
                        f"'{ZERO_SHOT}{_PLUS}{name}' needs the model before fine-tuning beside a fine-tuned one; "
                        "remove it"
                    )

    def check_model(self, model: nn.Module) -> None:
        """Raise ValueError if a projection cannot become part of the weights of `model`."""
        names = {name for own in self.by_method.values() for name in own if name in NEEDS_POOL}
        if names and (why := why_not_foldable(base_model_of(model))) is not None:
            raise ValueError(f"methods has the repair {min(names)!r}, but {why}; remove it")

    @property
    def example(self) -> str:
        """The label of a repaired run."""
        return next(f"{method}{_PLUS}{name}" for method, names in self.by_method.items() for name in names)

    def runs(self, method: str, trainer: StarFTTrainer, shared: RunInputs) -> list[Run]:
        """The repaired runs of a method; the model of `trainer` is not changed."""
        return [self._run(method, name, trainer, shared) for name in self.by_method.get(method, ())]

    def _run(self, method: str, name: str, trainer: StarFTTrainer, shared: RunInputs) -> Run:
        args = trainer.args
        # Without a start, the zero-shot model has no interpolations.
        base = None if method == ZERO_SHOT else load_model(shared.model, trust_remote_code=args.trust_remote_code)
        found = repair(
            trainer.model,
            trainer.processing_class,
            self.dataset,
            base=base,
            methods=None if name == REPAIR else (name,),
            spuriosity=_pool(trainer, shared),
            class_names=trainer.class_names,
            templates=args.zero_shot_templates,
            group_column=args.group_column,
            cluster_column=self.cluster_column,
            image_column=args.image_column,
            label_column=args.label_column,
            batch_size=args.per_device_eval_batch_size,
            on_bad_image=args.on_bad_image,
            image_decoding=args.image_decoding,
            image_cache=args.image_cache,
            cache_dir=args.reference_cache_dir,
            trust_remote_code=args.trust_remote_code,
            seed=args.seed,
            progress=False,
        )
        return Run(f"{method}{_PLUS}{name}", args.seed, _results(trainer, found.classifier))


def with_repairs(methods: Methods, dataset: Any = None, cluster_column: str | None = None) -> tuple[Methods, Repairs]:
    """The methods without repairs, each once, and the repairs of their runs.

    Raises:
        ValueError: if a repair occurs twice.
    """
    pairs = [] if isinstance(methods, (str, Mapping)) else [_split(label) for label in methods]
    asked = [pair for pair in pairs if pair[1] is not None]
    if not asked:
        return methods, Repairs({}, dataset, cluster_column=cluster_column)
    if len(set(asked)) < len(asked):
        raise ValueError(f"methods is {list(methods)}; pass at least one, without duplicates")
    own = [method for method, name in pairs if name is None]
    others = dict.fromkeys(method for method, _ in asked if method not in own)
    by_method = {method: tuple(str(name) for other, name in asked if other == method) for method in (*own, *others)}
    return [*own, *others], Repairs(by_method, dataset, frozenset(others), cluster_column)


def _pool(trainer: StarFTTrainer, shared: RunInputs) -> SpuriosityPool:
    """The pool that is projected out; for "auto" the one that the run has found, or without one all candidates."""
    found = trainer.setup.pool if is_auto(shared.spuriosity) else None
    return found or given_pool(shared.spuriosity, trainer.args.discovery_pool)


def _split(label: Any) -> tuple[str, str | None]:
    """A method and the repair it is followed by, if any."""
    method, _, name = str(label).rpartition(_PLUS)
    return (method, name) if method and name in _NAMES else (label, None)


def _columns(args: StarFTConfig) -> ColumnSettings:
    return ColumnSettings(
        args.image_column, args.label_column, group_column=args.group_column, class_names=args.class_names
    )


def _results(trainer: StarFTTrainer, classifier: Classifier) -> dict[str, AnyResult]:
    """The results of a classifier on the evaluation sets of a trainer, by name."""
    examples: Any = trainer.eval_dataset
    sets = examples if isinstance(examples, dict) else {"eval": examples}
    model, device = classifier.model, trainer.args.device
    model.to(device)
    head = None if classifier.head is None else classifier.head.to(device)
    found = {}
    for name, part in sets.items():
        columns = part.columns
        names = columns.classifier or columns.class_names or ()
        own = None if head is None or not names else select_classes(head, classifier.class_names or (), names)
        evaluation = evaluation_of(classifier.encoder, columns, classifier.templates, own, trainer.class_names)
        # Of the trainer, since each process measures a share of the rows.
        loader = trainer.get_eval_dataloader(part)
        with evaluation_mode(model):
            for batch in loader:
                evaluation.step(model, send_to_device(batch, device))
        forget_dataloader(trainer.accelerator, loader)
        found[name] = evaluation.result(training_group_shares(trainer.train_dataset, columns))
    return found
