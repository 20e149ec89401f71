"""The outcome of an audit."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from starft_hf.report.audit.page import render_audit
from starft_hf.report.data import as_plain
from starft_hf.spuriosity.correlates import Correlates
from starft_hf.utils.files import expanded, folder_in_place_of


@dataclass(frozen=True)
class Measured:
    """A model on some images.

    Attributes:
        accuracy: from 0 to 1.
        interval: of the accuracy, with 95% confidence, exact (Clopper and Pearson 1934).
        ece: expected calibration error.
    """

    accuracy: float
    interval: tuple[float, float]
    ece: float


@dataclass(frozen=True)
class GroupAudit:
    """The images of a group, by the audited model and by its start; None without a start."""

    images: int
    after: Measured
    before: Measured | None = None


@dataclass(frozen=True)
class Forgotten:
    """How far the audited model has moved from its start: 0 for the start itself, None without one.

    Attributes:
        texts_rank_change: 1 less the rank correlation, before and after, of the similarities of texts: captions of
            the classes, with templates of the pool and without, and words of the vocabulary.
        texts_divergence: of the distribution of each of these texts over the others, in nats.
        answers_changed: share of the images that another class is the answer for.
        retention: by dataset of another task, the accuracy "after" and, with a start, "before".
    """

    texts_rank_change: float | None
    texts_divergence: float | None
    answers_changed: float | None
    retention: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sensitivity:
    """How answers depend on what templates say: a row per class with a value per template.

    Attributes:
        templates: what each adds to a caption, such as "in the snow".
        attraction: over the images that are not of the class, its mean probability in the half that looks most like
            what the template says, by the start, less that in the other half. A model that reads snow as wolf has a
            large one for the class "wolf" and "in the snow".
        attraction_before: that of the start; None without one.
        shift: the share of probability that moves, on average over the images of the class, if the captions of all
            classes gain the template; None for a model with a linear head, which reads no captions.
        shift_before: that of the start; None without one. A shift that has become smaller may mean that the text tower
            no longer tells the template from the plain caption.
    """

    templates: Sequence[str]
    attraction: Sequence[Sequence[float]]
    attraction_before: Sequence[Sequence[float]] | None = None
    shift: Sequence[Sequence[float]] | None = None
    shift_before: Sequence[Sequence[float]] | None = None

    @property
    def largest(self) -> tuple[int, int, float]:
        """The indices of the class and of the template with the largest gain in attraction, and that gain.

        Where the start has a negative one, the gain counts from 0. Without a start, it is the attraction itself.
        """
        before = 0 if self.attraction_before is None else np.maximum(self.attraction_before, 0)
        gain = np.array(self.attraction) - before
        label, template = np.unravel_index(int(gain.argmax()), gain.shape)
        return int(label), int(template), float(gain[label, template])


@dataclass(frozen=True)
class SaliencyMap:
    """What a model answers for an image, and which parts of it speak for a mistake.

    Attributes:
        answer: the class.
        confidence: its probability.
        values: of the parts of the image, in rows from top to bottom: how much a part adds to the logit of the
            mistaken class less that of the right one, on average over images in which half of the other parts are
            hidden. What is negative speaks for the right class.
    """

    answer: str
    confidence: float
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class ExplainedMistake:
    """A mistake of the audited model, and what speaks for it by that and by its start; None without one.

    Attributes:
        row: of the dataset.
        label: the class of the image.
        taken_for: the class that the model answers.
    """

    row: int
    label: str
    taken_for: str
    after: SaliencyMap
    before: SaliencyMap | None = None


@dataclass(frozen=True)
class AuditResult:
    """What `audit` has found. Accuracies are from 0 to 1.

    Attributes:
        model, start: names of what was compared; `start` is None if it is not known.
        class_names: in label order.
        images: how many could be read.
        rows: of the dataset, which these are.
        grouped_by: "group_column", "pseudo_groups" (class and what the start sees of the pool), or "classes".
        average: over all images, by the model and by its start.
        groups: by name.
        worst_group: its name, by the accuracy of the audited model.
        worst_interval: of the accuracy of the group that is the worst, whichever that is, with 95% confidence. The
            interval of the group that looks worst does not allow for it having been chosen.
        forgotten: None without a start and retention sets.
        sensitivity: None if the model tells no template of the pool from the plain caption.
        correlates: what labels and mistakes are correlated with.
        score: from 0 to 1, without group labels; see `audit`.
        left_out: the parts that could not be measured, with the reason.
        weights: a digest of the files of the audited weights; None for a model in memory.
        mistakes: the most confident ones in the worst group, the most confident first.
        mistake_images: their images by row; on the page, but not in JSON.
    """

    model: str
    start: str | None
    class_names: Sequence[str]
    images: int
    rows: Sequence[int]
    grouped_by: str
    average: GroupAudit
    groups: Mapping[str, GroupAudit]
    worst_group: str
    worst_interval: tuple[float, float]
    forgotten: Forgotten | None
    sensitivity: Sensitivity | None
    correlates: Correlates
    score: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    weights: str | None = None
    mistakes: Sequence[ExplainedMistake] = ()
    mistake_images: Mapping[int, Image.Image] = field(default_factory=dict, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything but images and the pseudo-groups of single ones, for JSON."""
        content = asdict(replace(self, mistake_images={}))
        del content["mistake_images"]
        correlates = {key: value for key, value in content.pop("correlates").items() if key != "groups"}
        rows = [{**asdict(row), "sentence": str(row)} for row in self.correlates.found]
        del content["rows"]
        content["correlates"] = {**correlates, "found": rows}
        plain: dict[str, Any] = as_plain(content)
        return plain

    def as_html(self) -> str:
        """One page, which loads nothing from anywhere and runs no script."""
        return render_audit(self.as_dict(), self.mistake_images)

    def __str__(self) -> str:
        worst = self.groups[self.worst_group]
        return f"score {self.score:.2f}; {self.worst_group}: {worst.after.accuracy:.3f}"

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write audit.html, audit.json, pseudo_groups.csv and, where captions can say what was found, pool.json.

        Returns:
            The path of the page.

        Raises:
            FileExistsError: if `folder` is a file or a folder that is not empty.
        """
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n"
        page = self.as_html()
        groups = pd.DataFrame({"row": self.rows, "pseudo_group": self.correlates.groups})
        with folder_in_place_of(folder) as temporary:
            (temporary / "audit.json").write_text(text, encoding="utf-8")
            (temporary / "audit.html").write_text(page, encoding="utf-8")
            groups.to_csv(temporary / "pseudo_groups.csv", index=False)
            if self.correlates.templates:
                self.correlates.pool().save(temporary / "pool.json")
        return expanded(folder) / "audit.html"
