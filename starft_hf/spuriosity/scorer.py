"""Scores images by attribute: what spurious templates mean to a zero-shot model, and which of them an image shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starft_hf.data.captions import class_caption
from starft_hf.models.encoder import unit_rows
from starft_hf.models.texts import TextEncoding
from starft_hf.spuriosity.attributes import (
    Attribute,
    attributes_of,
    class_subspace,
    mean_of,
    readable_template,
    without_subspace,
)
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.spuriosity.statistics import agreement
from starft_hf.utils.names import readable


# A template is averaged over no more classes than this, evenly spread: more would change the average very little.
_CLASSES_PER_TEMPLATE = 8


@dataclass(frozen=True)
class Scorer:
    """Determines which attributes images have.

    Attributes:
        attributes: of all aspects.
        embeds: of the attributes, without the class subspace, `(A, D)`.
        plain: of the plain caption, without it, `(D,)`.
        halves: the same two from one half of the classes, and from the other.
        excluded: indices of the templates that the model cannot distinguish from the plain caption.
    """

    attributes: tuple[Attribute, ...]
    embeds: Tensor
    plain: Tensor
    halves: tuple[tuple[Tensor, Tensor], ...]
    excluded: tuple[int, ...] = ()

    def __call__(self, image_embeds: Tensor) -> dict[str, NDArray[np.int64]]:
        """By aspect, the index of the attribute that every image has, `(N,)`, or -1 for none."""
        return self._assigned(image_embeds, self.embeds, self.plain)

    def probabilities(self, image_embeds: Tensor, logit_scale: float) -> dict[str, Tensor]:
        """By aspect, the probabilities of its attributes in every image, `(N, 1 + their number)`; first that of none.

        Args:
            image_embeds: `(N, D)`.
            logit_scale: of the softmax over the captions, already exponentiated.
        """
        logits = self._similarities(logit_scale * image_embeds, self.embeds, self.plain)
        return {aspect: rows.softmax(-1) for aspect, (_, rows) in logits.items()}

    def agreement(self, image_embeds: Tensor) -> NDArray[np.float64]:
        """Agreement of captions of the two halves of the classes, as Cohen's kappa, `(A,)`.

        What an image shows does not depend on the class names in the captions it is compared with.
        """
        first, second = (list(self._assigned(image_embeds, *half).values()) for half in self.halves)
        return agreement(first, second, len(self.attributes))

    def _assigned(self, image_embeds: Tensor, embeds: Tensor, plain: Tensor) -> dict[str, NDArray[np.int64]]:
        similarities = self._similarities(image_embeds, embeds, plain)
        return {aspect: members[rows.argmax(-1).numpy()] for aspect, (members, rows) in similarities.items()}

    def _similarities(
        self, image_embeds: Tensor, embeds: Tensor, plain: Tensor
    ) -> dict[str, tuple[NDArray[np.int64], Tensor]]:
        """By aspect, the indices of its attributes after -1 for none, `(M,)`, and the similarities, `(N, M)`."""
        found = {}
        for aspect in dict.fromkeys(attribute.aspect for attribute in self.attributes):
            members = [index for index, attribute in enumerate(self.attributes) if attribute.aspect == aspect]
            captions = torch.cat([plain[None], embeds[members]])
            found[aspect] = np.array([-1, *members]), image_embeds @ captions.T
        return found


def scorer_from(
    embed: Callable[[Sequence[str]], Tensor],
    encoding: TextEncoding,
    class_names: Sequence[str],
    pool: SpuriosityPool,
    caption_templates: Sequence[str],
) -> Scorer:
    """The scorer of a pool, from embeddings of its templates and of the plain captions.

    Args:
        embed: gives unit rows of distinct texts, `(N, D)`, on the CPU.
        encoding: of the model that embeds.
        class_names: names of the classes.
        pool: the templates.
        caption_templates: the plain captions, with `{}` for the class name.
    """
    names = list(dict.fromkeys(readable(name) for name in class_names))
    eligible = [set(pool.eligible(name)) for name in names]
    wanted = [
        _spread([name for name, own in zip(names, eligible, strict=True) if index in own])
        for index in range(len(pool))
    ]

    def captions(template: str | None, own: Sequence[str]) -> list[str]:
        return [class_caption(name, caption, template, encoding) for name in own for caption in caption_templates]

    # The plain captions of every class; then, of all classes and of each half of them, plain captions and templates.
    shown = _spread(names)
    groups = [captions(None, [name]) for name in names]
    for half in (slice(None), slice(None, None, 2), slice(1, None, 2)):
        groups.append(captions(None, shown[half] or shown))
        groups += [captions(template, own[half] or own) for template, own in zip(pool, wanted, strict=True)]
    rows = _means(embed, groups)
    class_embeds, rest = rows[: len(names)], rows[len(names) :].unflatten(0, (3, 1 + len(pool)))
    aspects = [aspect or pool.name or "attribute" for aspect in pool.aspects or [None] * len(pool)]
    attributes: list[Attribute] = []
    for aspect in dict.fromkeys(aspects):
        members = [index for index, other in enumerate(aspects) if other == aspect and wanted[index]]
        texts = [readable_template(pool[index]) for index in members]
        attributes += attributes_of(rest[0, 1:][members], rest[0, 0], texts, members, aspect)
    # What distinguishes classes is removed, so that it cannot be mistaken for an attribute.
    basis = class_subspace(class_embeds)
    (embeds, plain), *halves = [
        (without_subspace(mean_of(attributes, view[1:]), basis), without_subspace(view[0], basis)) for view in rest
    ]
    used = {index for attribute in attributes for index in attribute.templates}
    excluded = tuple(index for index, own in enumerate(wanted) if own and index not in used)
    return Scorer(tuple(attributes), embeds, plain, tuple(halves), excluded)


def _spread(items: Sequence[str]) -> Sequence[str]:
    """At most `_CLASSES_PER_TEMPLATE` of the items, evenly spread."""
    number = _CLASSES_PER_TEMPLATE
    if len(items) <= number:
        return items
    return [items[round(place * (len(items) - 1) / (number - 1))] for place in range(number)]


def _means(embed: Callable[[Sequence[str]], Tensor], groups: Sequence[Sequence[str]]) -> Tensor:
    """One unit row per group of texts, the mean of theirs, `(len(groups), D)`; zeros for a group without texts."""
    row_of = {text: row for row, text in enumerate(dict.fromkeys(text for texts in groups for text in texts))}
    embeds = embed(list(row_of))
    return unit_rows(torch.stack([embeds[[row_of[text] for text in texts]].sum(0) for texts in groups]))
