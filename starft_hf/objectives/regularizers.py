"""The registry of regularizers.

A regularizer is one function of the batch's embeddings, the reference's, the labels and the reference's logit scale.
It is registered under the name that `StarFTConfig(regularizer=...)` takes, together with what it needs to be given,
so that nothing else in the package knows any regularizer by name.
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
    """What a regularizer is computed from: the n rows of this process, and the M columns of all of them.

    With one process, row i and column i belong to the same image.

    Attributes:
        image_embeds: unit rows of the tuned model, `(n, D)`.
        column_embeds: unit rows of the columns the regularizer asked for, `(M, D)`: the tuned model's spurious
            captions, of the rows or of the classes, or the reference's contexts.
        reference_image_embeds: the images' unit rows of the frozen reference, `(n, D0)`.
        reference_column_embeds: the columns' unit rows of the frozen reference, `(M, D0)`.
        logit_scale: the reference's inverse temperature s0, already exponentiated.
        labels: class indices of the rows, `(n,)`, or None for a data set without labels.
        column_labels: class indices of the columns, `(M,)`, or None.
        column_valid: which columns are those of a sample, `(M,)`; None: all.
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
        columns: what it compares images with. "spurious": one spurious caption per row; "classes": the captions of all
            classes (up to `StarFTConfig(reg_max_classes=...)`) under one spurious template that the batch shares;
            "contexts": one embedding per template of the pool, the reference's average over classes; "none": nothing.
        needs_weights: whether it looks at the weights, so that the reference must keep its own.
        needs_labels: whether it is undefined without class labels.
        fewest_classes: below this number of classes it constrains too little to be of use.
        minimal_at_reference: whether it is at a minimum, with a gradient of exactly 0, where the tuned model equals
            the reference.
        auto_weight: what `StarFTConfig(reg_weight="auto")` stands for, by the number of classes (None without labels);
            None: it is refused.
    """

    name: str
    compute: Callable[[RegularizerInputs], Tensor]
    columns: Literal["spurious", "classes", "contexts", "none"] = "spurious"
    needs_weights: bool = False
    needs_labels: bool = False
    fewest_classes: int = 1
    minimal_at_reference: bool = True
    auto_weight: Callable[[int | None], float] | None = None

    @property
    def finite_captions(self) -> bool:
        """Whether it needs captions made of class names, of which there are finitely many."""
        return self.columns in ("classes", "contexts")

    def weight(self, setting: float | str, num_classes: int | None) -> float:
        """The number that a setting of `reg_weight` stands for, with so many classes (None without labels).

        Raises:
            ValueError: if it is "auto", and no weight is known.
        """
        if setting != AUTO_WEIGHT:
            return float(setting)
        if self.auto_weight is None:
            raise ValueError(
                f"regularizer={self.name!r} has no weight for reg_weight='auto', because none was measured; "
                "pass a number"
            )
        return self.auto_weight(num_classes)


NO_REGULARIZER = "none"
AUTO_WEIGHT = "auto"
_REGISTRY: dict[str, Regularizer] = {}


def register_regularizer(regularizer: Regularizer) -> Regularizer:
    """Make `regularizer` available to `StarFTConfig(regularizer=regularizer.name)`.

    Raises:
        ValueError: if the name is taken.
    """
    if regularizer.name in regularizer_names():
        raise ValueError(f"a regularizer named {regularizer.name!r} exists already; choose another name")
    _REGISTRY[regularizer.name] = regularizer
    return regularizer


def regularizer_names() -> list[str]:
    """The names `StarFTConfig(regularizer=...)` takes."""
    return [*_REGISTRY, NO_REGULARIZER]


def get_regularizer(name: str) -> Regularizer | None:
    """The regularizer registered as `name`; None for "none".

    Raises:
        ValueError: if there is none of that name; the message has the nearest one.
    """
    if name == NO_REGULARIZER:
        return None
    if name not in _REGISTRY:
        raise ValueError(unknown_name("regularizer", name, regularizer_names()))
    return _REGISTRY[name]


def _align(inputs: RegularizerInputs, excluded: Tensor | None) -> Tensor:
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
    return _align(inputs, inputs.labels[:, None] == inputs.column_labels[None, :])


def divergence_weight(num_classes: int | None) -> float:
    """What `reg_weight="auto"` takes for the mean of divergences: 30 from six classes on, 120 for three, 270 for two.

    On the demo's world, with the contrastive base loss and reg_schedule="constant", "kl" and "conditional" do as well
    at it as at weights chosen on validation for each number of classes. "star" is within two points of its best weight
    on validation from four classes on, and far from it with two (docs/beyond.md). With fewer classes more of a batch's
    captions are the same, and the base loss, which cannot get them right, pulls harder. At logit scales of 50 and 100
    the best of the weights that were tried, up to 100, was at or above 30, with no rule to it. Nothing else was
    measured.

    Args:
        num_classes: of the training set; None without labels.
    """
    return 30.0 * max(1.0, (6 / num_classes) ** 2) if num_classes else 30.0


# A row of star sees the captions of other classes only: with two or three classes that is next to nothing.
register_regularizer(Regularizer("star", _star, needs_labels=True, fewest_classes=4, auto_weight=divergence_weight))
register_regularizer(Regularizer("kl", lambda inputs: _align(inputs, None), auto_weight=divergence_weight))
# The distribution over classes, given what is spurious: what a shortcut from the background to the label moves most.
register_regularizer(
    Regularizer(
        "conditional",
        lambda inputs: _align(inputs, None),
        columns="classes",
        fewest_classes=2,
        auto_weight=divergence_weight,
    )
)


def _l2_sp(inputs: RegularizerInputs) -> Tensor:
    assert inputs.weight_pairs is not None
    distance = sum((tuned - start).square().sum() for tuned, start in inputs.weight_pairs())
    return torch.as_tensor(distance) / 2


# Half the squared distance of the weights from where they started (arXiv 1802.01483). reg_weight is its coefficient.
register_regularizer(Regularizer("l2-sp", _l2_sp, columns="none", needs_weights=True))
# KL from the reference's distribution over contexts, whatever the class (arXiv 2211.16175).
register_regularizer(Regularizer("car-ft", lambda inputs: _align(inputs, None), columns="contexts"))
