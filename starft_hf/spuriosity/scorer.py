"""Attributes of images by a zero-shot model: what spurious templates mean to it, and which of them an image has."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from starft_hf.data.captions import class_caption
from starft_hf.models.texts import TextEncoding
from starft_hf.objectives.losses import unit_rows
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.spuriosity.statistics import Floats, Ints, agreement
from starft_hf.utils.names import readable


# A template is averaged over no more classes than this, evenly spread: more would change the average very little.
_CLASSES_PER_TEMPLATE = 8
# Templates are one attribute from this cosine on, of embeddings less the mean of their aspect.
_SIMILARITY = 0.7
# A template says nothing to the model if it changes captions by less than this share of the largest change, by any
# template or by class names.
_NEGLIGIBLE = 0.2
# Entries of unit rows that differ by less count as equal.
_ROUNDING = 1e-5
# The class subspace has at most 1 / this of all dimensions, so that something is left for attributes.
_CLASS_FRACTION = 8


@dataclass(frozen=True)
class Attribute:
    """The meaning of templates of an aspect: how the most typical one reads, and their indices in the pool."""

    name: str
    aspect: str
    templates: tuple[int, ...]


@dataclass(frozen=True)
class Scorer:
    """Determines which attributes images have."""

    attributes: tuple[Attribute, ...]
    # Of the plain caption and then of the attributes, without the class subspace, `(3, 1 + A, D)`: from all classes,
    # and from either half of them.
    captions: Tensor
    # Indices of the templates that the model cannot distinguish from the plain caption.
    excluded: tuple[int, ...] = ()

    def __call__(self, image_embeds: Tensor, view: int = 0) -> dict[str, Ints]:
        """By aspect, the index of the attribute that every image has, `(N,)`, or -1 for none."""
        similarities = self._similarities(image_embeds, view)
        return {aspect: members[rows.argmax(-1).numpy()] for aspect, (members, rows) in similarities.items()}

    def probabilities(self, image_embeds: Tensor, logit_scale: float) -> dict[str, Tensor]:
        """By aspect, the probabilities of none and of its attributes in every image, `(N, 1 + their number)`."""
        logits = self._similarities(logit_scale * image_embeds)
        return {aspect: rows.softmax(-1) for aspect, (_, rows) in logits.items()}

    def agreement(self, image_embeds: Tensor) -> Floats:
        """Agreement of captions of the two halves of the classes, as Cohen's kappa, `(A,)`."""
        # What an image shows does not depend on the class names in the captions it is compared with.
        first, second = (list(self(image_embeds, view).values()) for view in (1, 2))
        return agreement(first, second, len(self.attributes))

    def _similarities(self, image_embeds: Tensor, view: int = 0) -> dict[str, tuple[Ints, Tensor]]:
        """By aspect, the indices of its attributes after -1 for none, `(M,)`, and the similarities, `(N, M)`."""
        found = {}
        for aspect in dict.fromkeys(attribute.aspect for attribute in self.attributes):
            own = [index for index, attribute in enumerate(self.attributes) if attribute.aspect == aspect]
            members = np.array([-1, *own])
            found[aspect] = members, image_embeds @ self.captions[view, members + 1].T
        return found


def scorer_from(
    embed: Callable[[Sequence[str]], Tensor],
    encoding: TextEncoding,
    class_names: Sequence[str],
    pool: SpuriosityPool,
    caption_templates: Sequence[str],
) -> Scorer:
    """The scorer of a pool, from embeddings of its templates and of the plain captions.

    `embed` gives unit rows of distinct texts, `(N, D)`, on the CPU; `encoding` is that of its model.
    """
    names = list(dict.fromkeys(readable(name) for name in class_names))
    eligible = {name: set(pool.eligible(name)) for name in names}
    wanted = [_spread([name for name in names if index in eligible[name]]) for index in range(len(pool))]

    def captions(template: str | None, own: Sequence[str]) -> list[str]:
        return [class_caption(name, caption, template, encoding) for name in own for caption in caption_templates]

    # The plain captions of every class; then, of all classes and of each half of them, plain captions and templates.
    shown = _spread(names)
    groups = [captions(None, [name]) for name in names]
    for half in (slice(None), slice(None, None, 2), slice(1, None, 2)):
        groups.append(captions(None, shown[half] or shown))
        groups += [captions(template, own[half] or own) for template, own in zip(pool, wanted, strict=True)]
    rows = _means(embed, groups)
    class_embeds, views = rows[: len(names)], rows[len(names) :].unflatten(0, (3, 1 + len(pool)))
    has_meaning = _changes(class_embeds, views[0], [bool(own) for own in wanted]) >= _NEGLIGIBLE
    aspects = [aspect or pool.name or "attribute" for aspect in pool.aspects or [None] * len(pool)]
    attributes: list[Attribute] = []
    for aspect in dict.fromkeys(aspects):
        own = [index for index, other in enumerate(aspects) if other == aspect and has_meaning[index]]
        # Templates in the cluster of the plain caption, which is last, cannot be distinguished from it.
        embeds = torch.cat([views[0, 1:][own], views[0, :1]])
        for cluster in merge_alike(embeds):
            if len(own) not in cluster:
                most_typical = cluster[int((embeds[cluster] @ embeds[cluster].mean(0)).argmax())]
                name, templates = readable_template(pool[own[most_typical]]), tuple(own[row] for row in cluster)
                attributes.append(Attribute(name, aspect, templates))
    members = [[0], *([1 + index for index in attribute.templates] for attribute in attributes)]
    means = torch.stack([views[:, rows].mean(1) for rows in members], dim=1)
    used = {index for attribute in attributes for index in attribute.templates}
    excluded = tuple(index for index, own in enumerate(wanted) if own and index not in used)
    # What distinguishes classes is removed, so that it cannot be mistaken for an attribute.
    return Scorer(tuple(attributes), without_subspace(means, class_subspace(class_embeds)), excluded)


def _changes(class_embeds: Tensor, embeds: Tensor, is_used: Sequence[bool]) -> Tensor:
    """How far templates `(T,)` are from the plain caption, the first of `embeds` `(1 + T, D)`; the largest is 1.

    That one is by any template or by class names `(C, D)`, so that it is the same for all aspects. Within one whose
    templates all say nothing to the model, their differences from each other would look large.
    """
    changes = (embeds[1:] - embeds[0]).norm(dim=-1).where(torch.tensor(is_used), 0.0)
    largest = torch.maximum(changes.max(), (class_embeds - class_embeds.mean(0)).norm(dim=-1).max())
    return changes / largest.clamp(min=_ROUNDING)


def _spread(items: Sequence[str]) -> Sequence[str]:
    """At most `_CLASSES_PER_TEMPLATE` of the items, evenly spread."""
    last, steps = len(items) - 1, _CLASSES_PER_TEMPLATE - 1
    return items if last <= steps else [items[round(place * last / steps)] for place in range(steps + 1)]


def _means(embed: Callable[[Sequence[str]], Tensor], groups: Sequence[Sequence[str]]) -> Tensor:
    """One unit row per group of texts, the mean of theirs, `(len(groups), D)`; zeros for a group without texts."""
    row_of = {text: row for row, text in enumerate(dict.fromkeys(text for texts in groups for text in texts))}
    embeds = embed(list(row_of))
    return unit_rows(torch.stack([embeds[[row_of[text] for text in texts]].sum(0) for texts in groups]))


def class_subspace(class_embeds: Tensor) -> Tensor:
    """An orthonormal basis `(K, D)` of the largest differences of unit rows `(C, D)`; K < C, and at most D / 8."""
    _, sizes, basis = torch.linalg.svd(class_embeds - class_embeds.mean(0), full_matrices=False)
    number = min(len(class_embeds) - 1, class_embeds.shape[1] // _CLASS_FRACTION)
    return basis[:number][sizes[:number] > 1e-6]


def without_subspace(embeds: Tensor, basis: Tensor) -> Tensor:
    """`embeds` without their component in the subspace of an orthonormal basis."""
    return embeds - embeds @ basis.T @ basis


def merge_alike(embeds: Tensor) -> list[list[int]]:
    """Clusters, by average linkage, of unit rows `(N, D)` with nearly the same direction from their mean."""
    differences = embeds - embeds.mean(0)
    if differences.abs().max() < _ROUNDING:
        return [list(range(len(embeds)))]
    centered = unit_rows(differences).double()
    cosines = centered @ centered.T
    cosines.fill_diagonal_(-torch.inf)
    clusters: dict[int, list[int]] = {row: [row] for row in range(len(embeds))}
    while len(clusters) > 1:
        first, second = sorted(divmod(int(cosines.argmax()), len(embeds)))
        if cosines[first, second] < _SIMILARITY:
            break
        sizes = len(clusters[first]), len(clusters[second])
        mean = (sizes[0] * cosines[first] + sizes[1] * cosines[second]) / sum(sizes)
        cosines[first], cosines[:, first] = mean, mean
        cosines[second], cosines[:, second] = -torch.inf, -torch.inf
        cosines[first, first] = -torch.inf
        clusters[first] += clusters.pop(second)
    return [sorted(rows) for _, rows in sorted(clusters.items())]


def readable_template(template: str) -> str:
    """What a template adds: "on the water" of "{} on the water.", "striped" of "a striped {class}."."""
    text = template.replace("{class}", "").replace("{}", "").strip(" .,")
    return re.sub(r"^a (photo of an? )?|( of an?)$", "", text).strip() or template
