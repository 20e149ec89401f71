"""`repair`: a better worst group after training, from embeddings of a validation set."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils import logging

from starft_hf.data.columns import ColumnSettings, ImageColumns
from starft_hf.data.decoding import RAISE
from starft_hf.data.groups import GroupFunction
from starft_hf.data.images import SCALED
from starft_hf.hub.classifier import Classifier
from starft_hf.spuriosity.auto import Spuriosity
from starft_hf.utils.files import check_free, expanded
from starft_hf.utils.names import unknown_name
from starft_hf.weights.repair import candidates as tried
from starft_hf.weights.repair.embedded import Embedded, Ints
from starft_hf.weights.repair.embedding import (
    Embedder,
    ImageReading,
    clusters_of,
    embed,
    readable_rows,
    seen_attributes,
    targets,
)
from starft_hf.weights.repair.groups import (
    PSEUDO_GROUPS,
    WORST_CLASS,
    WORST_GROUP,
    check_clusters,
    check_numbers,
    class_of_one_group,
    indices_of,
    pseudo_groups,
    resolve_measure,
)
from starft_hf.weights.repair.labeled import LabeledImages
from starft_hf.weights.repair.projections import why_not_foldable
from starft_hf.weights.repair.selection import Score, choose
from starft_hf.weights.repair.subject import Subject
from starft_hf.weights.repair.writing import record_of, repaired, write


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Tried:
    """A candidate: its method and settings, and its score on images that it was not fitted to."""

    method: str
    settings: Mapping[str, Any]
    score: Score


@dataclass(frozen=True)
class RepairResult:
    """What `repair` has found. Accuracies are from 0 to 1, of images that a candidate was not fitted to.

    Attributes:
        method: the chosen one; "none" if no candidate gains more than it may err.
        settings: of the method.
        select_by: "worst_group", "pseudo_groups" or "worst_class".
        images: how many the candidates were fitted to and compared on.
        before, after: scores without a repair, and with the chosen one.
        gain: in worst-group accuracy of the best candidate, corrected for being the best of many.
        standard_error: of the difference between the best candidate and no repair.
        candidates: everything that was tried.
        left_out: the methods that were not tried, with the reason.
        classifier: the repaired model.
        output_dir: where it has been written; None if it was not.
    """

    method: str
    settings: Mapping[str, Any]
    select_by: str
    images: int
    before: Score
    after: Score
    gain: float
    standard_error: float
    candidates: tuple[Tried, ...]
    left_out: Mapping[str, str]
    classifier: Classifier
    output_dir: Path | None = None

    def best_of_methods(self) -> list[Tried]:
        """The candidate with the best worst group of each method, in the order of their worst groups."""
        best: dict[str, Tried] = {}
        for candidate in self.candidates:
            known = best.get(candidate.method)
            if known is None or candidate.score.worst_group > known.score.worst_group:
                best[candidate.method] = candidate
        return sorted(best.values(), key=lambda candidate: -candidate.score.worst_group)

    def as_dict(self) -> dict[str, Any]:
        """The outcome for JSON, without the model."""
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "select_by": self.select_by,
            "images": self.images,
            "validation": {"before": asdict(self.before), "after": asdict(self.after)},
            "gain": self.gain,
            "standard_error": self.standard_error,
            "candidates": [
                {"method": each.method, "settings": dict(each.settings), **asdict(each.score)}
                for each in self.candidates
            ],
            "left_out": dict(self.left_out),
            "output_dir": None if self.output_dir is None else str(self.output_dir),
        }


def repair(
    model: str | PathLike[str] | nn.Module,
    processor: Any,
    dataset: Any,
    *,
    output_dir: str | PathLike[str] | None = None,
    base: str | PathLike[str] | nn.Module | None = None,
    methods: Sequence[str] | None = None,
    select_by: str | None = None,
    spuriosity: Spuriosity | None = None,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] | str | None = None,
    group_column: str | Sequence[str] | None = None,
    group_function: GroupFunction | None = None,
    cluster_column: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    batch_size: int = 64,
    num_workers: int = 0,
    on_bad_image: str = RAISE,
    image_decoding: str = SCALED,
    image_cache: str | PathLike[str] | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> RepairResult:
    """Improve the worst group of a fine-tuned model without training it again, if validation data allow it.

    The images of a validation set are embedded by the model, by its start, and by interpolations of both. On the
    embeddings several repairs are fitted and compared by cross-validation. The best one is taken only if it gains more
    than one standard error; otherwise the model stays as it is.

    The methods are "logit adjustment" (arXiv 2007.07314); "WiSE-FT" (arXiv 2109.01903); "projection", which removes
    the principal directions of a pool's templates from images and texts; "PRISM-mini" (arXiv 2507.08979), which
    removes the texts that the templates add from images; a class-balanced "last layer"; "DFR" (arXiv 2204.02937); and
    "AFR" (arXiv 2306.11074), which counts images more that the model gets wrong, or as "AFR, zero-shot errors" its
    start.

    Args:
        model: a fine-tuned dual encoder: a folder or Hub id of a full model, of one with a head or of an adapter, or a
            model in memory. It is not changed.
        processor: its processor; None loads it from where the model is from.
        dataset: a validation split: labeled images that are used neither for training nor to report results.
        output_dir: where to write the repaired model, a new or empty folder; None does not write it.
        base: the model before fine-tuning; None: the base model of an adapter, or the one that the model's record
            names. Without one, what needs it is skipped.
        methods: those to try; without "none", the best one is used even if it gains little. None: all,
            but without groups, those that fit no last layer: a last layer fitted to images with a spurious correlation
            learns it again, which only group labels can show.
        select_by: "worst_group", "pseudo_groups" (class and what the start sees of the pool's templates) or
            "worst_class". None: the worst group if there are groups, else the worst class.
        spuriosity: the pool, as for `StarFTTrainer`; None: that of the model's record, if any.
        class_names: names of the classes; None: those of the head, of the ClassLabel column or of the record.
        templates: prompts; None: those of the record.
        group_column: column that names a row's group, or several whose combinations do.
        group_function: names a row's group from its other columns, in place of `group_column`.
        cluster_column: column that says which images belong together, since they show one individual, patient or
            product, or come from one camera or video. They stay together in cross-validation and in the bootstrap, so
            that a repair is compared on others than it was fitted to. None: every image shows something else.
        image_column: column with the images.
        label_column: column with the labels.
        batch_size: images per forward.
        num_workers: processes that load images.
        on_bad_image: "raise" or "skip", as in `evaluate_zero_shot`.
        image_decoding: as in `evaluate_zero_shot`, as is `image_cache`.
        image_cache: where decoded images are kept.
        cache_dir: folder of the cached embeddings, as `reference_cache_dir`.
        device: where images are embedded; None: where the model is.
        trust_remote_code: run the code that comes with a model of a class that transformers does not have.
        seed: seed of folds and bootstrap samples.
        progress: whether to show progress bars.

    Returns:
        What was chosen and all that was tried, with the repaired model.

    Raises:
        FileExistsError: if there is something in `output_dir`.
        ValueError: before the first forward, if there is no image of a class, there are fewer than five of a group or
            fewer than two clusters of a class, or data and model do not fit.
    """
    output = None if output_dir is None else expanded(output_dir)
    if output is not None:
        check_free(output, "output_dir")
    if isinstance(methods, str) or (methods is not None and not methods):
        raise ValueError(f"methods is {methods!r}; pass a list of some of {', '.join(tried.METHODS)}, or None")
    for method in methods or ():
        if method not in tried.METHODS:
            raise ValueError(unknown_name("method", method, tried.METHODS))
    reading = ImageReading(
        batch_size, num_workers, on_bad_image, image_decoding, image_cache, cache_dir, device, progress
    )
    asked = ColumnSettings(image_column, label_column, None, group_column, class_names, group_function)
    described: dict[str, Any] = {"templates": templates, "spuriosity": spuriosity}
    images = LabeledImages.of(model, dataset, asked, reading, trust_remote_code=trust_remote_code, **described)
    columns, has_pool = images.columns, images.known.pool is not None
    # Whether there is a start is known once it is loaded.
    select_by, labels, groups = check_numbers_of(dataset, columns, select_by, has_pool=has_pool)
    clusters = checked_clusters(dataset, cluster_column, labels, columns.class_names or ())
    subject = images.load(processor, base)
    resolve_measure(select_by, has_groups=columns.groups is not None, has_pool=has_pool and subject.start is not None)

    embedder = Embedder(subject, dataset, columns, reading)
    bound = class_of_one_group(labels, groups, columns.class_names or ()) if select_by == WORST_GROUP else None
    left_out = _left_out(subject, methods, select_by, bound)
    methods = tuple(methods or tried.METHODS)
    used = tuple(method for method in methods if method not in left_out)
    if not used:
        raise ValueError(
            f"none of methods can be tried: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}"
        )
    alphas = tried.ALPHAS if tried.WISE_FT in used else tried.ALPHAS[:1] if tried.AFR_OF_START in used else ()
    data = embed(subject, embedder, labels, alphas)
    data = replace(data, clusters=clusters)
    group_names: Sequence[str] | None = None
    if select_by == WORST_GROUP:
        indices, group_names = indices_of(groups)
        data = replace(data, groups=indices)
    elif select_by == PSEUDO_GROUPS:
        seen = seen_attributes(subject, embedder)
        if seen is None:
            raise ValueError(
                "the start cannot tell any template of the pool from the plain caption, so that there are no "
                "pseudo-groups; pass another spuriosity, or select_by='worst_class'"
            )
        data = replace(data, groups=pseudo_groups(labels, seen))
    data = _checked(data, columns.class_names or (), group_names)
    return _chosen(subject, data, select_by, used, seed, left_out, output)


def check_numbers_of(
    dataset: Any, columns: ImageColumns, select_by: str | None, *, has_pool: bool
) -> tuple[str, Ints, list[str]]:
    """What to choose by, and the class index and group of every row, of which there are enough; ValueError if not."""
    select_by = resolve_measure(select_by, has_groups=columns.groups is not None, has_pool=has_pool)
    labels, groups = targets(dataset, columns)
    check_numbers(labels, columns.class_names or (), groups if select_by == WORST_GROUP else None)
    return select_by, labels, groups


def checked_clusters(dataset: Any, column: str | None, labels: Ints, class_names: Sequence[str]) -> Ints | None:
    """The cluster index of every row by a column, of which there are enough; None without a column."""
    if column is None:
        return None
    clusters = indices_of(clusters_of(dataset, column))[0]
    check_clusters(clusters, labels, class_names)
    return clusters


def _chosen(
    subject: Subject,
    data: Embedded,
    select_by: str,
    methods: tuple[str, ...],
    seed: int,
    left_out: Mapping[str, str],
    output: Path | None,
) -> RepairResult:
    each = tried.candidates(data, methods)
    if len(each) == 1 and tried.NONE not in methods:
        raise ValueError(
            f"none of methods ({', '.join(methods)}) can be tried: the pool leaves no dimensions for the classes, or "
            "no class has images of several groups"
        )
    choice = choose(data, each, seed, may_keep=tried.NONE in methods)
    found = each[choice.chosen]
    classifier = repaired(subject, found.fit(data, np.arange(len(data.labels))))
    result = RepairResult(
        method=found.method,
        settings=found.settings,
        select_by=select_by,
        images=len(data.labels),
        before=choice.scores[0],
        after=choice.scores[choice.chosen],
        gain=choice.gain,
        standard_error=choice.standard_error,
        candidates=tuple(
            Tried(candidate.method, candidate.settings, score)
            for candidate, score in zip(each, choice.scores, strict=True)
        ),
        left_out=left_out,
        classifier=classifier,
        output_dir=output,
    )
    if output is not None:
        content = result.as_dict()
        kept = ("method", "settings", "select_by", "images", "validation", "gain", "standard_error")
        record = record_of(subject, {key: content[key] for key in kept})
        write(classifier, record, output)
    return result


def _left_out(subject: Subject, methods: Sequence[str] | None, select_by: str, bound: str | None) -> dict[str, str]:
    """The methods that cannot be tried, or are not tried unasked, with the reason, which is warned of.

    `bound` is a class whose images are all of one group, if there is one.
    """
    found = {}
    fixed = why_not_foldable(subject.model)
    for method in methods or tried.METHODS:
        if methods is None and select_by != WORST_GROUP and method in tried.FITS_LAST_LAYER:
            found[method] = (
                "it would learn what is correlated with the classes of this dataset; pass group_column, or name it in "
                f"methods=[{method!r}]"
            )
        elif methods is None and bound is not None and method in tried.FITS_LAST_LAYER:
            found[method] = (
                f"all images of the class {bound!r} are of one group, so that groups cannot show what is correlated "
                f"with it; add images of other groups, or name it in methods=[{method!r}]"
            )
        elif method in tried.NEEDS_START and subject.start is None:
            found[method] = "the model before fine-tuning is unknown; pass base='its id or folder'"
        elif method in tried.NEEDS_POOL and subject.pool is None:
            found[method] = "no pool is known; pass spuriosity='background' or another"
        elif method in tried.NEEDS_POOL and fixed is not None:
            found[method] = fixed
        elif method == tried.DFR and select_by == WORST_CLASS:
            found[method] = "it balances groups, and there are none; pass group_column"
    for method, why in found.items():
        logger.warning("repair leaves out %r: %s.", method, why)
    return found


def _checked(data: Embedded, class_names: Sequence[str], group_names: Sequence[str] | None) -> Embedded:
    """The data without unreadable images, of which there must not be too many."""
    kept = readable_rows(data)
    if len(kept.labels) < len(data.labels):
        groups = None if group_names is None else [group_names[group] for group in kept.groups]
        check_numbers(kept.labels, class_names, groups)
        if kept.clusters is not None:
            check_clusters(kept.clusters, kept.labels, class_names)
    return kept
