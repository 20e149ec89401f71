"""What is correlated with the labels of images, and with mistakes on them, where no pool names what to look for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starft_hf.spuriosity.association import Target, Tested, auc, independent, measure_targets
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.spuriosity.properties import MEASURED, Properties
from starft_hf.spuriosity.statistics import Floats, Ints
from starft_hf.spuriosity.vocabulary import WORD_TEMPLATE
from starft_hf.utils.names import readable


LABELS, MISTAKES = "labels", "mistakes"
WORD, PROPERTY = "word", "property"

# Words are one attribute from this cosine on, of embeddings less the mean of the vocabulary.
_ALIKE = 0.7
# Of a class, correlates that tell something that stronger ones do not.
_MOST = 5
# The strongest of a class, among which those are chosen.
_MOST_CANDIDATES = 200
# Classes with fewer images, and classes with fewer mistakes or right answers, are not tested.
_FEWEST = 5


@dataclass(frozen=True)
class CorrelateSettings:
    """What counts as found.

    Attributes:
        alpha: of datasets without any association, no more than this fraction gives one for labels, or one for
            mistakes.
        min_effect: how far the effect must be from 0.5.
        permutations: of the labels, and of the mistakes.
        max_images: words are tested on no more images, drawn at random.
        seed: of images and permutations.
    """

    alpha: float = 0.05
    min_effect: float = 0.05
    permutations: int = 400
    max_images: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.alpha * (self.permutations + 1) < 1:
            raise ValueError(
                f"alpha is {self.alpha} and permutations is {self.permutations}; alpha must be above 0 and below 1, "
                "and permutations at least 1 / alpha"
            )


@dataclass(frozen=True)
class Correlate:
    """Something that a class, or the mistakes on its images, is correlated with.

    Attributes:
        class_name: the class.
        of: "labels", compared with images of other classes, or "mistakes", compared with its images that were
            classified correctly.
        kind: "word", or "property" of the image or its file.
        name: the word or the property.
        text: what images are, such as "brighter".
        effect: how often such an image is more so than one that it is compared with, from 0.5 to 1.
        p_value: how often chance gives any class and any word or property as much.
        alike: other words of the same meaning.
        template: what a pool adds to captions for it; None if captions cannot say it.
    """

    class_name: str
    of: str
    kind: str
    name: str
    text: str
    effect: float
    p_value: float
    alike: tuple[str, ...] = ()
    template: str | None = None

    def __str__(self) -> str:
        return f"{self.subject} are {self.text}: {self.effect:.2f}"

    @property
    def subject(self) -> str:
        """The images that it is about, in words."""
        return f"mistaken images of {self.class_name}" if self.of == MISTAKES else f"images of {self.class_name}"


@dataclass(frozen=True)
class _Feature:
    kind: str
    name: str
    more: str
    less: str
    template_more: str | None = None
    template_less: str | None = None


@dataclass(frozen=True)
class Looked:
    """What images are compared by: their similarities with words, and their properties.

    Attributes:
        words: the vocabulary.
        embeds: unit rows of the words less their mean and what distinguishes classes, `(W, D)`.
        similarities: of images and words, `(N, W)`.
        properties: of the images.
    """

    words: Sequence[str]
    embeds: Floats
    similarities: NDArray[np.float32]
    properties: Properties

    @cached_property
    def features(self) -> list[_Feature]:
        """What the columns of `values` are."""
        words = [
            _Feature(
                WORD,
                word,
                f"more like \u201c{word}\u201d",
                f"less like \u201c{word}\u201d",
                WORD_TEMPLATE.format(word),
            )
            for word in self.words
        ]
        measured = [
            _Feature(PROPERTY, own.name, own.more, own.less, own.caption_more, own.caption_less) for own in MEASURED
        ]
        named = [
            _Feature(
                PROPERTY,
                name,
                f"more often of the {name} \u201c{value}\u201d",
                f"less often of the {name} \u201c{value}\u201d",
            )
            for name, value in self.properties.named
        ]
        return words + measured + named

    def values(self, rows: Any = slice(None), columns: Any = slice(None)) -> NDArray[Any]:
        """The features of images, `(n, F)`; NaN where unknown."""
        own = self.properties
        parts = [self.similarities[rows], own.measured[rows], own.has[rows]]
        return np.concatenate(parts, axis=1, dtype=np.float32)[:, columns]


@dataclass(frozen=True)
class Correlates:
    """What was found.

    Attributes:
        found: correlates of labels and of mistakes, those of labels first, by class, the strongest first.
        groups: the pseudo-group of every image, `(N,)`: whether it has what its class is most correlated with.
        images: how many were tested.
        words, properties: how many.
    """

    found: tuple[Correlate, ...]
    groups: tuple[str, ...]
    images: int
    words: int
    properties: int
    settings: CorrelateSettings = field(default_factory=CorrelateSettings)

    @property
    def templates(self) -> dict[str, str]:
        """What captions can say of the correlates of labels, each with the name of the word or property."""
        return {row.template: row.name for row in self.found if row.of == LABELS and row.template is not None}

    def pool(self) -> SpuriosityPool:
        """What captions can say of the correlates of labels, as a pool for training.

        Raises:
            ValueError: if nothing was found that captions can say.
        """
        templates = self.templates
        if not templates:
            raise ValueError("nothing was found that is correlated with a label and that a caption can say")
        return SpuriosityPool(
            list(templates),
            name="audit",
            source="found by an audit, without a pool",
            aspects=list(templates.values()),
            description="What is correlated with a label in the dataset that was audited.",
        )


def find_correlates(
    looked: Looked, labels: Ints, wrong: NDArray[np.bool_], class_names: Sequence[str], settings: CorrelateSettings
) -> Correlates:
    """Find the words and properties that labels `(N,)`, and mistakes `(N,)` within classes, are correlated with.

    Of those that are, each class keeps the strongest that tell something that the ones before do not; words that mean
    the same to the text tower count once.
    """
    rows = np.arange(len(labels))
    if len(rows) > settings.max_images:
        generator = np.random.default_rng(settings.seed)
        rows = np.sort(generator.choice(len(rows), settings.max_images, replace=False))
    names = [readable(name) for name in class_names]
    values, own = looked.values(rows), labels[rows]
    everything = np.arange(len(rows))
    of_labels = {
        label: Target(name, everything, own == label)
        for label, name in enumerate(names)
        if _FEWEST <= np.count_nonzero(own == label) < len(rows)
    }
    of_mistakes = {
        label: Target(name, (of_class := np.flatnonzero(own == label)), wrong[rows][of_class])
        for label, name in enumerate(names)
        if min(np.count_nonzero(part[own == label]) for part in (wrong[rows], ~wrong[rows])) >= _FEWEST
    }
    found: list[Correlate] = []
    strongest: dict[int, tuple[int, int]] = {}
    for about, targets in ((LABELS, of_labels), (MISTAKES, of_mistakes)):
        tested = measure_targets(
            values,
            list(targets.values()),
            alpha=settings.alpha,
            permutations=settings.permutations,
            seed=settings.seed,
        )
        for place, (label, target) in enumerate(targets.items()):
            chosen = list(_chosen(looked, values, target, tested, place, settings))
            found += [_correlate(looked, values, target, tested, (place, *part), about) for part in chosen]
            if chosen and about == LABELS:
                strongest[label] = (chosen[0][0], 1 if tested.scores[place, chosen[0][0]] > 0 else -1)
    return Correlates(
        tuple(found),
        tuple(_pseudo_groups(looked, labels, names, strongest)),
        images=len(rows),
        words=len(looked.words),
        properties=len(MEASURED) + len({name for name, _ in looked.properties.named}),
        settings=settings,
    )


def _chosen(
    looked: Looked, values: NDArray[Any], target: Target, tested: Tested, place: int, settings: CorrelateSettings
) -> Iterable[tuple[int, tuple[str, ...]]]:
    """Of one target the features that are found, the strongest first, each with the words that mean the same."""
    scores = np.abs(tested.scores[place])
    # Of two values of a property, each the absence of the other, the one that the class has more often.
    sorted_by = np.lexsort((tested.scores[place] < 0, -scores.round(4)))
    order = [int(index) for index in sorted_by if scores[index] > tested.critical]
    order = [
        index
        for index in order[:_MOST_CANDIDATES]
        if abs(auc(values[target.rows, index], target.members) - 0.5) >= settings.min_effect
    ]
    alike: dict[int, list[int]] = {}
    for index in order:
        if index >= len(looked.words):
            alike[index] = []
            continue
        others = [other for other in alike if other < len(looked.words)]
        same = next((one for one in others if looked.embeds[one] @ looked.embeds[index] >= _ALIKE), None)
        if same is None:
            alike[index] = []
        else:
            alike[same].append(index)
    for index in independent(values, target, list(alike), tested.critical, _MOST):
        yield index, tuple(looked.words[other] for other in alike[index])


def _correlate(
    looked: Looked,
    values: NDArray[Any],
    target: Target,
    tested: Tested,
    chosen: tuple[int, int, tuple[str, ...]],
    about: str,
) -> Correlate:
    place, index, alike = chosen
    feature, effect = looked.features[index], auc(values[target.rows, index], target.members)
    more = effect >= 0.5
    return Correlate(
        class_name=target.name,
        of=about,
        kind=feature.kind,
        name=feature.name,
        text=feature.more if more else feature.less,
        effect=effect if more else 1 - effect,
        p_value=float(tested.p_values[place, index]),
        alike=alike,
        template=feature.template_more if more else feature.template_less,
    )


def _pseudo_groups(
    looked: Looked, labels: Ints, names: Sequence[str], strongest: dict[int, tuple[int, int]]
) -> list[str]:
    """Whether every image has what its class is most correlated with: it is more like its class than like the others.

    Of a measured value, the border is between the medians of the class and of the other images.
    """
    groups = [names[label] for label in labels]
    for label, (index, sign) in strongest.items():
        values = sign * looked.values(columns=[index])[:, 0]
        known = ~np.isnan(values)
        # Of what was tested, the class has known values, and so have others.
        border = sum(np.median(values[known & part]) for part in (labels == label, labels != label)) / 2
        if set(np.unique(np.abs(values[known]))) <= {0.0, 1.0}:
            border = sign / 2
        has = np.nan_to_num(values, nan=-np.inf) > border
        for row in np.flatnonzero(labels == label):
            groups[row] += ", aligned" if has[row] else ", conflicting"
    return groups
