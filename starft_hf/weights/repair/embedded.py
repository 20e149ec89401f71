"""What repairs are fitted on: embeddings of validation images and of prompts, and the logits they give."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Repair:
    """A change of a fine-tuned model; without any, the model as it is.

    Attributes:
        head: weight `(classes, D)` and bias `(classes,)` of a linear head on unit image rows, in place of the prompts.
        basis: orthonormal rows `(k, D)` of the subspace that embeddings are projected out of.
        of_texts: whether texts are projected as well as images.
        alpha: weight of the fine-tuned model in an interpolation with its start.
    """

    head: tuple[Floats, Floats] | None = None
    basis: Floats | None = None
    of_texts: bool = True
    alpha: float | None = None


@dataclass(frozen=True)
class Embedded:
    """The validation set as a fine-tuned model, and maybe its start, embed it. All rows are unit rows.

    Attributes:
        images: `(N, D)`.
        labels: class indices `(N,)`.
        groups: group indices `(N,)`.
        prompts: of every class under every template, `(classes, templates, D)`.
        scale: inverse temperature.
        head: the trained head of the model, as in `Repair`; None if it classifies by its prompts.
        mixed: logits `(N, classes)` of interpolations with the start, by alpha.
        start_logits: those of the start; None without one.
        pool: what each template of the pool adds to a caption, `(templates, D)`; None without a pool.
        attributes: the texts that the templates add, by themselves, `(attributes, D)`; None without a pool.
        clusters: indices `(N,)` of what images belong to, from 0, such as individuals; None: each stands alone.
    """

    images: Floats
    labels: Ints
    groups: Ints
    prompts: Floats
    scale: float
    head: tuple[Floats, Floats] | None = None
    mixed: Mapping[float, Floats] = field(default_factory=dict)
    start_logits: Floats | None = None
    pool: Floats | None = None
    attributes: Floats | None = None
    clusters: Ints | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.prompts)

    @property
    def classifier(self) -> tuple[Floats, Floats]:
        """The model's own classifier as a head: the trained one, or that of its prompts."""
        return self.head or (self._of_prompts(self.prompts), np.zeros(self.num_classes))

    def logits(self, repair: Repair) -> Floats:
        """The logits `(N, classes)` of the repaired model."""
        if repair.alpha is not None:
            return self.mixed[repair.alpha]
        images, (weight, bias) = self.images, repair.head or self.classifier
        if repair.basis is not None:
            images = unit(without(images, repair.basis))
            if repair.of_texts and repair.head is None and self.head is None:
                weight = self._of_prompts(unit(without(self.prompts, repair.basis)))
        return images @ weight.T + bias

    def _of_prompts(self, prompts: Floats) -> Floats:
        return self.scale * unit(prompts.mean(1))


def unit(rows: Floats) -> Floats:
    """Rows scaled to length 1; rows of zeros stay."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(length == 0, 1, length)


def without(rows: Floats, basis: Floats) -> Floats:
    """Rows less their component in the subspace of an orthonormal basis `(k, D)`."""
    return rows - rows @ basis.T @ basis


def softmax(logits: Floats) -> Floats:
    """The probabilities of every row."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
