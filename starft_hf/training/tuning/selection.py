"""What a model is chosen by: the measure, the groups of the validation set, and which of two equals is taken."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers.utils import logging

from starft_hf.data.source import is_iterable
from starft_hf.evaluation.results import CurvePoint
from starft_hf.models.loading import load_processor
from starft_hf.models.precision import exact_copy
from starft_hf.spuriosity.auto import given_pool
from starft_hf.spuriosity.discovery import discover_spuriosity
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.plan import RunInputs
from starft_hf.training.training_rows import training_subset
from starft_hf.utils.names import unknown_name


logger = logging.get_logger(__name__)

WORST_GROUP, PSEUDO_GROUPS, WORST_CLASS, AVERAGE = "worst_group", "pseudo_groups", "worst_class", "average"
MEASURES = (WORST_GROUP, PSEUDO_GROUPS, WORST_CLASS, AVERAGE)
# What the worst of is meant, for people.
WORDS = {
    WORST_GROUP: "the worst group",
    PSEUDO_GROUPS: "the worst pseudo-group",
    WORST_CLASS: "the worst class",
    AVERAGE: "the average",
}

_PSEUDO_GROUP = "pseudo-group"


def measure_of(select_by: str | None, args: StarFTConfig, validation: Any) -> str:
    """The measure to choose by; None takes the worst group where groups are known, and else the worst class.

    Raises:
        ValueError: if there is no such measure, or the validation set has not what it needs.
    """
    if select_by is None:
        select_by = WORST_GROUP if args.group_column else WORST_CLASS
        if select_by == WORST_CLASS:
            logger.warning(
                "No groups are known, so the choice is by the worst class, which is less certain than by the worst "
                "group; name a group_column, or set select_by='pseudo_groups' to have groups made by the zero-shot "
                "model."
            )
    if select_by not in MEASURES:
        raise ValueError(unknown_name("select_by", select_by, MEASURES))
    if select_by == WORST_GROUP and not args.group_column:
        raise ValueError(
            "select_by='worst_group' needs groups; set group_column, or choose by 'pseudo_groups' or 'worst_class'"
        )
    if select_by == PSEUDO_GROUPS and (is_iterable(validation) or not hasattr(validation, "add_column")):
        raise ValueError(
            f"select_by={PSEUDO_GROUPS!r} adds a column to the validation set, which is a "
            f"{type(validation).__name__}; pass a `datasets` Dataset, or choose by 'worst_class'"
        )
    if select_by == AVERAGE:
        logger.warning(
            "select_by='average' prefers models that use what is spurious where it helps on average: the worst group "
            "of what it chooses was 15 points lower in the literature, and that of the worst class 1.8 points."
        )
    return select_by


def with_groups(given: RunInputs, select_by: str) -> RunInputs:
    """`given`, with the groups by which its one evaluation set is measured; its model is loaded."""
    if select_by in (WORST_GROUP, AVERAGE):
        return given
    if select_by == WORST_CLASS:
        without: dict[str, Any] = {"group_column": None}
        return replace(given, args=replace(given.args, **without))
    ((name, validation),) = given.eval_dataset.items()
    column = _PSEUDO_GROUP
    while column in validation.column_names:
        column += "_"
    groups = _pseudo_groups(given, validation)
    return replace(
        given,
        args=replace(given.args, group_column=column),
        eval_dataset={name: validation.add_column(column, groups)},
    )


def _pseudo_groups(given: RunInputs, validation: Any) -> list[str]:
    """Whether each image shows what usually occurs with its label in the training set, as the zero-shot model sees."""
    args = given.args
    assert isinstance(given.model, nn.Module)
    # A copy, since the runs start from the model where it is.
    model = exact_copy(given.model).to(args.device)
    processor = load_processor(model, given.processing_class, trust_remote_code=args.trust_remote_code)
    dataset = training_subset(args, given.train_dataset)
    found = discover_spuriosity(
        model,
        processor,
        dataset,
        given_pool(given.spuriosity, args.discovery_pool),
        class_names=args.class_names,
        caption_template=args.caption_templates,
        image_column=args.image_column,
        label_column=args.label_column,
        max_samples=args.discovery_samples if is_iterable(dataset) else None,
        seed=args.seed,
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        on_bad_image=args.on_bad_image,
        image_decoding=args.image_decoding,
        image_cache=args.image_cache,
        progress=not args.disable_tqdm,
    )
    if not found.found:
        logger.warning("Nothing of the pool is correlated with a label, so the pseudo-groups are the classes.")
    return found.groups(validation, model, processor)


def score(point: CurvePoint, select_by: str) -> float:
    """The measure of a model."""
    return point.average if select_by == AVERAGE else point.worst_group


def best_point(curve: Sequence[CurvePoint], select_by: str) -> CurvePoint:
    """The best model between the zero-shot one and a fine-tuned one; of equals that with the lowest alpha."""
    return max(curve, key=lambda point: (score(point, select_by), -point.alpha))
