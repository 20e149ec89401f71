"""Attributes of images by a zero-shot model: which templates mean the same to it, and which one an image has."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from starft_hf.models.encoder import unit_rows


# Templates whose embeddings, less the mean of their aspect, are this similar are one attribute.
SIMILARITY = 0.7

# Entries of unit rows that differ by less are the same.
_ROUNDING = 1e-5

# The subspace of the classes is kept to this share of all dimensions, so that something is left for attributes.
_CLASS_SHARE = 8


@dataclass(frozen=True)
class Attribute:
    """What one or several templates of an aspect mean.

    Attributes:
        name: how it reads, after the template that is most like all of them.
        aspect: what it is about, such as "background".
        templates: indices of the templates in their pool.
    """

    name: str
    aspect: str
    templates: tuple[int, ...]


def class_subspace(class_embeds: Tensor) -> Tensor:
    """An orthonormal basis `(K, D)` of what tells captions of classes apart.

    K is at most C - 1, and at most an eighth of D, in which case the largest differences are kept.

    Args:
        class_embeds: unit rows of the plain captions, `(C, D)`.
    """
    differences = class_embeds - class_embeds.mean(0)
    _, sizes, basis = torch.linalg.svd(differences, full_matrices=False)
    number = min(len(class_embeds) - 1, class_embeds.shape[1] // _CLASS_SHARE)
    return basis[:number][sizes[:number] > 1e-6]


def without_subspace(embeds: Tensor, basis: Tensor) -> Tensor:
    """`embeds` less their part in the subspace of an orthonormal basis."""
    return embeds - embeds @ basis.T @ basis


def merge_alike(embeds: Tensor, similarity: float = SIMILARITY) -> list[list[int]]:
    """Clusters of rows that point the same way from the mean of all, by average linkage.

    Args:
        embeds: unit rows, `(N, D)`.
        similarity: cosine from which clusters are merged.

    Returns:
        The rows of every cluster, in order of their first row.
    """
    differences = embeds - embeds.mean(0)
    if differences.abs().max() < _ROUNDING:
        return [list(range(len(embeds)))]
    centred = unit_rows(differences).double()
    cosines = centred @ centred.T
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
    """The attributes that the templates of one aspect mean to a model.

    Templates that the model cannot tell from the plain caption mean nothing to it, and are left out.

    Args:
        embeds: unit rows of the templates, averaged over classes, `(T, D)`.
        plain: unit row of the plain caption, averaged over classes, `(D,)`.
        names: how the templates read.
        templates: their indices in the pool.
        aspect: what they are about.
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
    """The embedding of every attribute, `(A, D)`: the mean of those of its templates.

    Args:
        attributes: the attributes.
        embeds: of all templates of the pool, `(T, D)`.
    """
    rows = [embeds[list(attribute.templates)].mean(0) for attribute in attributes]
    return torch.stack(rows) if rows else embeds[:0]


def assign(image_embeds: Tensor, attribute_embeds: Tensor, plain: Tensor) -> Tensor:
    """The attribute that every image has, `(N,)`: that of the caption most like it, or -1 for the plain one.

    Args:
        image_embeds: `(N, D)`.
        attribute_embeds: of the attributes of one aspect, `(A, D)`.
        plain: of the plain caption, `(D,)`.
    """
    return (image_embeds @ torch.cat([plain[None], attribute_embeds]).T).argmax(-1) - 1


def readable_template(template: str) -> str:
    """What a template adds, for people: "on the water" of "{} on the water.", "striped" of "a striped {class}."."""
    text = template.replace("{class}", "").replace("{}", "").strip(" .,")
    for filling in ("a photo of an ", "a photo of a "):
        text = text.removeprefix(filling)
    for filling in (" of an", " of a"):
        text = text.removesuffix(filling)
    return text.removeprefix("a ") or template
