"""The registry of regularizers, so that nothing else in the package refers to one by name.

A regularizer is one function of the batch's embeddings, the reference's, the labels and the reference's logit scale.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from starft_hf.objectives.losses import alignment_rows
from starft_hf.utils.names import unknown_name


@dataclass(frozen=True)
class RegularizerInputs:
    """The inputs of a regularizer: the n rows of this process, and the M columns (candidates) of all processes.

    With one process, row i and column i belong to the same image.

    Attributes:
        image_embeds: unit rows of the tuned model, `(n, D)`.
        column_embeds: unit rows of what `Regularizer.columns` names, `(M, D)`: the tuned model's spurious captions, of
            the rows or of the classes, or the reference's contexts.
        reference_image_embeds: the images' unit rows from the frozen reference, `(n, D0)`.
        reference_column_embeds: the columns' unit rows from the frozen reference, `(M, D0)`.
        logit_scale: the reference's inverse temperature s0, already exponentiated.
        labels: class indices of the rows, `(n,)`, or None for a dataset without labels. With `captions_as_labels` that
            has equal numbers for equal captions.
        column_labels: the same of the columns, `(M,)`, or None.
        column_valid: which columns belong to a sample, `(M,)`; the others are padding. None: all.
        weight_pairs: every parameter of the tuned model with its value in the reference.
    """

    image_embeds: Tensor
    column_embeds: Tensor
    reference_image_embeds: Tensor
    reference_column_embeds: Tensor
    logit_scale: Tensor
    labels: Tensor | None
    column_labels: Tensor | None
    column_valid: Tensor | None = None
    weight_pairs: Callable[[], Iterator[tuple[Tensor, Tensor]]] | None = None


@dataclass(frozen=True)
class Regularizer:
    """A registered regularizer and what it needs.

    Attributes:
        name: what `StarFTConfig(regularizer=...)` takes.
        compute: the terms of the loss in nats, one per row `(n,)`, of which the mean over the whole batch is taken; or
            a scalar, the same in every process.
        columns: the candidates that images are compared with. "spurious": one spurious caption per row; "classes": the
            captions of all classes (up to `StarFTConfig(reg_max_classes=...)`) in one spurious template that the batch
            shares; "contexts": one embedding per template of the pool, the reference's average over classes; "none":
            nothing.
        needs_weights: whether it uses the weights, so that the reference must keep its own.
        needs_labels: whether it is undefined without class labels.
        captions_as_labels: whether, in data with captions and no labels, rows with the same caption may stand for rows
            of one class: it then gets numbers of captions as labels.
        fewest_classes: with fewer classes it constrains too little to be useful.
        minimal_at_reference: whether it is at a minimum, with a gradient of exactly 0, where the tuned model equals
            the reference.
        auto_weight: the weight of `StarFTConfig(reg_weight="auto")`, by the number of classes (None without labels);
            None: "auto" is an error.
    """

    name: str
    compute: Callable[[RegularizerInputs], Tensor]
    columns: Literal["spurious", "classes", "contexts", "none"] = "spurious"
    needs_weights: bool = False
    needs_labels: bool = False
    captions_as_labels: bool = False
    fewest_classes: int = 1
    minimal_at_reference: bool = True
    auto_weight: Callable[[int | None], float] | None = None

    def weight(self, setting: float | str, num_classes: int | None) -> float:
        """The weight for a setting of `reg_weight`, given the number of classes (None without labels).

        Raises:
            ValueError: if it is "auto" and the regularizer has no `auto_weight`.
        """
        if setting != AUTO_WEIGHT:
            return float(setting)
        if self.auto_weight is None:
            raise ValueError(
                f"regularizer={self.name!r} has no weight for reg_weight='auto', as none was measured; set reg_weight "
                "to a number"
            )
        return self.auto_weight(num_classes)


NO_REGULARIZER = "none"
AUTO_REGULARIZER = AUTO_WEIGHT = "auto"
_REGISTRY: dict[str, Regularizer] = {}


def register_regularizer(regularizer: Regularizer) -> Regularizer:
    """Make `regularizer` available to `StarFTConfig(regularizer=regularizer.name)`.

    Raises:
        ValueError: if the name is taken, as "auto" and "none" are.
    """
    if regularizer.name in regularizer_names():
        raise ValueError(f"a regularizer named {regularizer.name!r} exists already; choose another name")
    _REGISTRY[regularizer.name] = regularizer
    return regularizer


def regularizer_names() -> list[str]:
    """The names `StarFTConfig(regularizer=...)` takes."""
    return [AUTO_REGULARIZER, *_REGISTRY, NO_REGULARIZER]


def get_regularizer(name: str, num_classes: int | None = None, *, several: bool = False) -> Regularizer | None:
    """The regularizer registered as `name`; None for "none".

    Args:
        name: as `StarFTConfig(regularizer=...)` takes it. "auto" is "star" with as many classes as that needs, and
            "kl" with fewer and without labels. Both need the same of a run, other than labels.
        num_classes: the classes of the training set; None without labels, or as long as they are unknown.
        several: whether an image has any number of classes, for which "auto" is "kl".

    Raises:
        ValueError: if there is none, with the nearest name.
    """
    if name == NO_REGULARIZER:
        return None
    if name == AUTO_REGULARIZER:
        enough = not several and (num_classes or 0) >= _REGISTRY["star"].fewest_classes
        name = "star" if enough else "kl"
    if name not in _REGISTRY:
        raise ValueError(unknown_name("regularizer", name, regularizer_names()))
    return _REGISTRY[name]


def _kl(inputs: RegularizerInputs, excluded: Tensor | None = None) -> Tensor:
    if inputs.column_valid is not None:
        excluded = ~inputs.column_valid if excluded is None else excluded | ~inputs.column_valid
        excluded = excluded.expand(len(inputs.image_embeds), -1)
    return alignment_rows(
        inputs.image_embeds,
        inputs.column_embeds,
        inputs.reference_image_embeds,
        inputs.reference_column_embeds,
        inputs.logit_scale,
        excluded,
    )


def _star(inputs: RegularizerInputs) -> Tensor:
    assert inputs.labels is not None
    assert inputs.column_labels is not None
    return _kl(inputs, inputs.labels[:, None] == inputs.column_labels[None, :])


def divergence_weight(num_classes: int | None) -> float:
    """The weight of `reg_weight="auto"` for mean divergences: 30 for six or more classes, 120 for three, 270 for two.

    On the demo's world, with the contrastive base loss and reg_schedule="constant", "kl" and "conditional" are as good
    with it as with weights chosen on validation for each number of classes. "star" is within two points of its best
    weight on validation for four or more classes, and far from it for two (docs/beyond.md). Why fewer classes need
    more is not known. Not because captions of a batch are identical: with one caption per class, the base loss has the
    value and the gradients of one that counts all of them as positives (docs/reference/losses.md), and cross-entropy
    over the captions of the classes needs large weights too. At logit scales of 50 and 100 the best of the weights
    that were tried, up to 100, was 30 or above, without a pattern. Nothing else was measured.

    Args:
        num_classes: the classes of the training set; None without labels.
    """
    return 30.0 * max(1.0, (6 / num_classes) ** 2) if num_classes else 30.0


# star compares a row with captions of other classes only: with two or three classes, almost nothing is left.
register_regularizer(
    Regularizer(
        "star",
        _star,
        needs_labels=True,
        captions_as_labels=True,
        fewest_classes=4,
        auto_weight=divergence_weight,
    )
)
register_regularizer(Regularizer("kl", _kl, auto_weight=divergence_weight))
# The distribution over classes given a spurious context, which a shortcut from background to label changes most.
register_regularizer(
    Regularizer("conditional", _kl, columns="classes", fewest_classes=2, auto_weight=divergence_weight)
)


def _l2_sp(inputs: RegularizerInputs) -> Tensor:
    assert inputs.weight_pairs is not None
    distance = sum((tuned - start).square().sum() for tuned, start in inputs.weight_pairs())
    return torch.as_tensor(distance) / 2


# Half the squared distance of the weights from the reference's (arXiv 1802.01483). reg_weight is its coefficient.
register_regularizer(Regularizer("l2-sp", _l2_sp, columns="none", needs_weights=True))
# KL from the reference's distribution over contexts, whatever the class (arXiv 2211.16175).
register_regularizer(Regularizer("car-ft", _kl, columns="contexts"))
