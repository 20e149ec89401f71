"""One training step's losses, from one forward of the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starft_hf.data.captions import CaptionBank
from starft_hf.models.encoder import DualEncoder, DualOutput, unwrapped
from starft_hf.models.gradient_cache import forward_in_chunks
from starft_hf.objectives.losses import contrastive_rows, sigmoid_rows
from starft_hf.objectives.regularizers import Regularizer, RegularizerInputs
from starft_hf.reference import Reference
from starft_hf.training import nan_check
from starft_hf.utils.collectives import gather_columns, gather_values, rank, world_size


@dataclass(frozen=True)
class StepLosses:
    """Scalars, in nats: `loss = base_loss + reg_weight * reg_loss`. Their mean over processes is the batch's.

    `parts` are scalars by the names of what they were made of: where that is not finite, neither are they.
    """

    loss: Tensor
    base_loss: Tensor
    reg_loss: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """What the rows of this process are compared with: the whole batch, of all processes.

    Attributes:
        images: unit rows, `(N, D)`.
        captions: unit rows, `(N, D)`, or None where the base loss has no captions.
        spurious: unit rows, `(N, D)`, or None without a regularizer.
        first: the place of this process's first row among them.
        valid: which columns are those of a sample, `(N,)`; None: all.
    """

    images: Tensor
    captions: Tensor | None
    spurious: Tensor | None
    first: int
    valid: Tensor | None


def gather_batch(batch: Mapping[str, Any], outputs: DualOutput, *, spurious: bool) -> Columns:
    """The columns of all processes, with gradients, by a single exchange."""
    texts = outputs.text_embeds
    parts = [outputs.image_embeds]
    captions = "caption_rows" in batch
    if captions:
        parts.append(texts[batch["caption_rows"]])
    if spurious:
        parts.append(texts[batch["spurious_rows"]])
    count = len(outputs.image_embeds)
    valid = batch.get("valid")
    if world_size() > 1:
        parts = list(gather_columns(torch.cat(parts, dim=-1)).split([part.shape[-1] for part in parts], dim=-1))
        valid = gather_values(batch["valid"]) if valid is not None else None
    return Columns(
        images=parts[0],
        captions=parts[1] if captions else None,
        spurious=parts[-1] if spurious else None,
        first=rank() * count,
        valid=valid,
    )


BaseLoss = Callable[[DualOutput, Columns, Mapping[str, Any]], Tensor]


def contrastive_base_loss(outputs: DualOutput, columns: Columns, batch: Mapping[str, Any]) -> Tensor:
    """Images against their captions, by the loss the model was trained with: its terms, one per row."""
    captions = outputs.text_embeds[batch["caption_rows"]]
    assert columns.captions is not None
    if outputs.logit_bias is not None:
        return sigmoid_rows(
            outputs.image_embeds,
            columns.captions,
            outputs.logit_scale,
            outputs.logit_bias,
            columns.first,
            columns.valid,
        )
    return contrastive_rows(
        outputs.image_embeds,
        captions,
        columns.images,
        columns.captions,
        outputs.logit_scale,
        columns.first,
        columns.valid,
    )


def cross_entropy_base_loss(outputs: DualOutput, columns: Columns, batch: Mapping[str, Any]) -> Tensor:
    """Cross-entropy of the linear head: its terms, one per row."""
    assert outputs.head_logits is not None
    return F.cross_entropy(outputs.head_logits, batch["labels"], reduction="none")


@dataclass(frozen=True)
class TrainingStep:
    """Computes the losses of a batch.

    Args:
        encoder: the model's conventions.
        base_loss: the loss that fine-tuning is about.
        regularizer: what keeps the model near the reference, or None.
        reference: needed with a regularizer.
        head: the linear head, where the base loss needs one.
        mini_batch_size: images per forward and backward; None runs a batch as a whole.
        bank: the captions, for regularizers that compare with contexts.
        sample_weights: from sample indices `(n,)` to the weights of their terms of the base loss, or None. With N
            samples in the batch of all processes, it is `sum(w_i l_i) / N`: the weights have a mean of 1 over the
            training set, and are not brought to that within a batch.
    """

    encoder: DualEncoder
    base_loss: BaseLoss
    regularizer: Regularizer | None = None
    reference: Reference | None = None
    head: nn.Linear | None = None
    mini_batch_size: int | None = None
    bank: CaptionBank | None = None
    sample_weights: Callable[[Tensor], Tensor] | None = None

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], reg_weight: float) -> StepLosses:
        """The losses of `batch` by one forward of `model`, which may be inside a parallel wrapper."""
        inner = unwrapped(model)
        with forward_in_chunks(inner, self.mini_batch_size):
            outputs = self.encoder.forward(model, batch, self.head)
        spurious = self.regularizer is not None and self.regularizer.columns == "spurious"
        columns = gather_batch(batch, outputs, spurious=spurious)
        base_terms = self.base_loss(outputs, columns, batch)
        if self.sample_weights is not None:
            base_terms = base_terms * self.sample_weights(batch["sample_index"]).to(base_terms.dtype)
        base = _mean(base_terms, batch, columns)
        parts = _parts(batch, outputs, columns) | {nan_check.BASE_LOSS: base}
        if self.regularizer is None or self.reference is None:
            return StepLosses(base, base, torch.zeros_like(base), parts)
        inputs = self._regularizer_inputs(self.regularizer, inner, batch, outputs, columns)
        terms = self.regularizer.compute(inputs)
        reg = _mean(terms, batch, columns) if terms.ndim else terms
        if self.regularizer.minimal_at_reference and self.reference.equals(inner):
            # The gradient is 0 here. What rounding leaves of it must not reach Adam, which would scale it up to full
            # steps in every parameter that only the spurious captions reach. It is made 0 rather than None, so that
            # Adam counts the step and decays the weights of these parameters like all others.
            reg = reg.detach() + 0 * reg
        parts[nan_check.REFERENCE_IMAGES] = inputs.reference_image_embeds.sum()
        parts[nan_check.REFERENCE_COLUMNS] = inputs.reference_column_embeds.sum()
        return StepLosses(base + reg_weight * reg, base, reg, parts | {nan_check.REGULARIZER: reg})

    def _regularizer_inputs(
        self,
        regularizer: Regularizer,
        model: nn.Module,
        batch: Mapping[str, Any],
        outputs: DualOutput,
        columns: Columns,
    ) -> RegularizerInputs:
        reference = self.reference
        assert reference is not None
        labels = batch.get("labels")
        valid = column_labels = None
        reference_images = outputs.image_embeds.detach()
        tuned = reference_columns = outputs.text_embeds[:0].detach()
        if regularizer.columns == "spurious":
            assert columns.spurious is not None
            tuned, valid = columns.spurious, columns.valid
            reference_images, own_columns = reference.embed(batch)
            reference_columns = gather_values(own_columns)
            column_labels = None if labels is None else gather_values(labels)
        elif regularizer.columns == "classes":
            # Every process has all of these columns, so that its own rows need nothing of the others.
            tuned, column_labels = outputs.text_embeds[batch["spurious_rows"]], batch["column_labels"]
            reference_images, reference_columns = reference.embed(batch)
        elif regularizer.columns == "contexts":
            assert self.bank is not None
            reference_images = reference.embed_images(batch)
            tuned = reference_columns = reference.contexts(self.bank)
        return RegularizerInputs(
            image_embeds=outputs.image_embeds,
            column_embeds=tuned,
            reference_image_embeds=reference_images,
            reference_column_embeds=reference_columns,
            logit_scale=reference.logit_scale,
            labels=labels,
            column_labels=column_labels,
            column_valid=valid,
            weight_pairs=lambda: reference.weight_pairs(model),
        )


@torch.no_grad()
def _parts(batch: Mapping[str, Any], outputs: DualOutput, columns: Columns) -> dict[str, Tensor]:
    parts = {
        nan_check.PIXELS: batch["pixel_values"],
        nan_check.IMAGES: outputs.image_embeds,
        nan_check.CAPTIONS: columns.captions,
        nan_check.SPURIOUS: columns.spurious,
        nan_check.SCALE: outputs.logit_scale,
    }
    return {name: part.float().sum() for name, part in parts.items() if part is not None}


def _mean(terms: Tensor, batch: Mapping[str, Any], columns: Columns) -> Tensor:
    """This process's share of the mean over all rows that are samples.

    The mean over processes, which gradients go through anyway, is then the mean over the batch.
    """
    if columns.valid is None:
        return terms.mean()
    # Of a batch whose images are all bad, nothing is learnt.
    return torch.where(batch["valid"], terms, 0).sum() * world_size() / columns.valid.sum().clamp(min=1)
