"""Attributes of images by a zero-shot model: clusters of templates that mean the same to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starft_hf.models.encoder import unit_rows


# Templates are one attribute from this cosine on, of embeddings less the mean of their aspect.
SIMILARITY = 0.7

# Entries of unit rows that differ by less count as equal.
_ROUNDING = 1e-5

# The class subspace has at most 1 / this of all dimensions, so that something is left for attributes.
_CLASS_FRACTION = 8


@dataclass(frozen=True)
class Attribute:
    """The meaning of one or several templates of an aspect.

    Attributes:
        name: the most typical of the templates, as it reads.
        aspect: its subject, such as "background".
        templates: indices of the templates in their pool.
    """

    name: str
    aspect: str
    templates: tuple[int, ...]


def class_subspace(class_embeds: Tensor) -> Tensor:
    """An orthonormal basis `(K, D)` of the differences of class captions.

    K is at most C - 1, and at most an eighth of D, in which case the largest differences are kept.

    Args:
        class_embeds: unit rows of the plain captions, `(C, D)`.
    """
    differences = class_embeds - class_embeds.mean(0)
    _, sizes, basis = torch.linalg.svd(differences, full_matrices=False)
    number = min(len(class_embeds) - 1, class_embeds.shape[1] // _CLASS_FRACTION)
    return basis[:number][sizes[:number] > 1e-6]


def without_subspace(embeds: Tensor, basis: Tensor) -> Tensor:
    """`embeds` without their component in the subspace of an orthonormal basis."""
    return embeds - embeds @ basis.T @ basis


def merge_alike(embeds: Tensor, similarity: float = SIMILARITY) -> list[list[int]]:
    """Clusters of rows with the same direction from the mean of all, by average linkage.

    Args:
        embeds: unit rows, `(N, D)`.
        similarity: cosine from which clusters are merged.

    Returns:
        The rows of every cluster, in order of their first row.
    """
    differences = embeds - embeds.mean(0)
    if differences.abs().max() < _ROUNDING:
        return [list(range(len(embeds)))]
    centered = unit_rows(differences).double()
    cosines = centered @ centered.T
    cosines.fill_diagonal_(-torch.inf)
    clusters: dict[int, list[int]] = {row: [row] for row in range(len(embeds))}
    while len(clusters) > 1:
        best = int(cosines.argmax())
        first, second = sorted(divmod(best, len(embeds)))
        if cosines[first, second] < similarity:
            break
        sizes = len(clusters[first]), len(clusters[second])
        mean = (sizes[0] * cosines[first] + sizes[1] * cosines[second]) / sum(sizes)
        cosines[first], cosines[:, first] = mean, mean
        cosines[second], cosines[:, second] = -torch.inf, -torch.inf
        cosines[first, first] = -torch.inf
        clusters[first] += clusters.pop(second)
    return [sorted(rows) for _, rows in sorted(clusters.items())]


def attributes_of(
    embeds: Tensor, plain: Tensor, names: Sequence[str], templates: Sequence[int], aspect: str
) -> list[Attribute]:
    """The attributes that a model distinguishes among the templates of one aspect.

    Templates that it cannot distinguish from the plain caption are excluded.

    Args:
        embeds: unit rows of the templates, averaged over classes, `(T, D)`.
        plain: unit row of the plain caption, averaged over classes, `(D,)`.
        names: how the templates read.
        templates: their indices in the pool.
        aspect: their subject.
    """
    attributes = []
    for cluster in merge_alike(torch.cat([embeds, plain[None]])):
        if len(embeds) in cluster:
            continue
        mean = embeds[cluster].mean(0)
        most_typical = cluster[int((embeds[cluster] @ mean).argmax())]
        attributes.append(Attribute(names[most_typical], aspect, tuple(templates[row] for row in cluster)))
    return attributes


def mean_of(attributes: Sequence[Attribute], embeds: Tensor) -> Tensor:
    """The embeddings of attributes, `(A, D)`: means of their templates, from those of the whole pool, `(T, D)`."""
    rows = [embeds[list(attribute.templates)].mean(0) for attribute in attributes]
    return torch.stack(rows) if rows else embeds[:0]


def readable_template(template: str) -> str:
    """What a template adds: "on the water" of "{} on the water.", "striped" of "a striped {class}."."""
    text = template.replace("{class}", "").replace("{}", "").strip(" .,")
    for filler in ("a photo of an ", "a photo of a "):
        text = text.removeprefix(filler)
    for filler in (" of an", " of a"):
        text = text.removesuffix(filler)
    return text.removeprefix("a ") or template
