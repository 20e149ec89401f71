"""One training step's losses, from one forward of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starft_hf.gradient_cache import forward_in_chunks
from starft_hf.models import DualEncoder, logit_scale_of
from starft_hf.objectives import contrastive_loss, similarity_logits
from starft_hf.reference import Reference
from starft_hf.regularizers import Regularizer, RegularizerInputs


@dataclass(frozen=True)
class StepLosses:
    """Scalars, in nats: `loss = base_loss + reg_weight * reg_loss`."""

    loss: Tensor
    base_loss: Tensor
    reg_loss: Tensor


@dataclass(frozen=True)
class BaseLossInputs:
    """What a base loss is computed from: unit rows of the images and of the batch's distinct texts, and the batch."""

    image_embeds: Tensor
    text_embeds: Tensor
    batch: Mapping[str, Any]
    model: nn.Module


BaseLoss = Callable[[BaseLossInputs], Tensor]


def contrastive_base_loss(inputs: BaseLossInputs) -> Tensor:
    """Images against their captions, at the model's own temperature."""
    captions = inputs.text_embeds[inputs.batch["caption_rows"]]
    return contrastive_loss(inputs.image_embeds, captions, logit_scale_of(inputs.model))


@dataclass(frozen=True)
class CrossEntropyBaseLoss:
    """Cross-entropy of a linear head on the image embeddings."""

    head: nn.Linear

    def __call__(self, inputs: BaseLossInputs) -> Tensor:
        return F.cross_entropy(head_logits(self.head, inputs.image_embeds), inputs.batch["labels"])


def head_logits(head: nn.Linear, image_embeds: Tensor) -> Tensor:
    """Logits `(N, classes)` of a linear head, in float32 or wider."""
    bias = head.bias.to(torch.promote_types(head.bias.dtype, torch.float32))
    return similarity_logits(image_embeds, head.weight, 1.0) + bias


@dataclass(frozen=True)
class TrainingStep:
    """Computes the losses of a batch.

    Args:
        encoder: the model's conventions.
        base_loss: the loss that fine-tuning is about.
        regularizer: what keeps the model near the reference, or None.
        reference: needed with a regularizer.
        mini_batch_size: images per forward and backward; None runs a batch as a whole.
    """

    encoder: DualEncoder
    base_loss: BaseLoss
    regularizer: Regularizer | None = None
    reference: Reference | None = None
    mini_batch_size: int | None = None

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Any], reg_weight: float, unwrapped: nn.Module | None = None
    ) -> StepLosses:
        """The losses of `batch` by one forward of `model`; `unwrapped` is the model inside a parallel wrapper."""
        with forward_in_chunks(unwrapped or model, self.mini_batch_size):
            image_embeds, text_embeds = self.encoder.forward(model, batch)
        base = self.base_loss(BaseLossInputs(image_embeds, text_embeds, batch, unwrapped or model))
        if self.regularizer is None:
            return StepLosses(base, base, torch.zeros_like(base))
        assert self.reference is not None
        reference_images, reference_columns = self.reference.embed(batch)
        reg = self.regularizer.compute(
            RegularizerInputs(
                image_embeds=image_embeds,
                column_embeds=text_embeds[batch["spurious_rows"]],
                reference_image_embeds=reference_images,
                reference_column_embeds=reference_columns,
                logit_scale=self.reference.logit_scale,
                labels=batch.get("labels"),
            )
        )
        if self.regularizer.minimal_at_reference and self.reference.equals(unwrapped or model):
            # The gradient is 0 here. What rounding leaves of it must not reach Adam, which would scale it up to full
            # steps in every parameter that only the spurious captions reach. It is made 0 rather than None, so that
            # Adam counts the step and decays the weights of these parameters like all others.
            reg = reg.detach() + 0 * reg
        return StepLosses(base + reg_weight * reg, base, reg)
