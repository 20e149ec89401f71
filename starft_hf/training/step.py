"""The losses of one training step, from one forward of the model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starft_hf.models.encoder import DualEncoder, DualOutput, batch_images
from starft_hf.models.gradient_cache import forward_in_chunks
from starft_hf.models.modes import freeze_batch_norm, unwrapped
from starft_hf.objectives.losses import alignment_rows, contrastive_rows, multi_label_rows, sigmoid_rows
from starft_hf.objectives.regularizers import Regularizer, RegularizerInputs
from starft_hf.reference import Reference
from starft_hf.training import nan_check
from starft_hf.training.candidates import Candidates, ComparedEmbeds
from starft_hf.training.frozen_texts import FrozenTexts
from starft_hf.training.gathering import GatheredBatch, batch_mean, gather_batch
from starft_hf.utils.collectives import gather_values, mean_over_processes


@dataclass(frozen=True)
class StepLosses:
    """Scalars, in nats: `loss = base_loss + reg_weight * reg_loss`. Their mean over processes is the batch's.

    `plain_drift` is the divergence from the reference's distribution over the plain captions of the batch to the tuned
    model's, which is no part of the loss; None where the reference does not know these captions at no extra cost.
    `parts` are sums of the tensors the losses are made of, by name: a part that is not finite is where NaN comes from.
    """

    loss: Tensor
    base_loss: Tensor
    reg_loss: Tensor
    plain_drift: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)


BaseLoss = Callable[[DualOutput, GatheredBatch, Mapping[str, Any]], Tensor]


def contrastive_base_loss(outputs: DualOutput, gathered: GatheredBatch, batch: Mapping[str, Any]) -> Tensor:
    """Images against their captions, by the loss the model was pre-trained with: its terms, one per row."""
    assert gathered.captions is not None
    rest = (gathered.first, gathered.valid)
    if outputs.logit_bias is not None:
        return sigmoid_rows(outputs.image_embeds, gathered.captions, outputs.logit_scale, outputs.logit_bias, *rest)
    own = outputs.text_embeds[batch["caption_rows"]]
    return contrastive_rows(outputs.image_embeds, own, gathered.images, gathered.captions, outputs.logit_scale, *rest)


def cross_entropy_base_loss(
    outputs: DualOutput, gathered: GatheredBatch, batch: Mapping[str, Any], label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of the linear head: its terms, one per row."""
    assert outputs.head_logits is not None
    return F.cross_entropy(outputs.head_logits, batch["labels"], reduction="none", label_smoothing=label_smoothing)


def multi_label_base_loss(
    outputs: DualOutput, gathered: GatheredBatch, batch: Mapping[str, Any], label_smoothing: float = 0.0
) -> Tensor:
    """Binary cross-entropy of images with the captions of all classes: its terms, one per row."""
    assert outputs.logit_bias is not None
    # Every process encodes these captions itself, so that its own rows need nothing of the others.
    classes = outputs.text_embeds[batch["class_rows"]]
    logits = (outputs.logit_scale, outputs.logit_bias)
    return multi_label_rows(outputs.image_embeds, classes, batch["targets"], *logits, label_smoothing)


def base_loss(name: str, label_smoothing: float = 0.0) -> BaseLoss:
    """The base loss of this name; "contrastive" has no labels to smooth, "cross_entropy" and "multi_label" do."""
    if name == "contrastive":
        return contrastive_base_loss
    return partial(
        cross_entropy_base_loss if name == "cross_entropy" else multi_label_base_loss, label_smoothing=label_smoothing
    )


@dataclass(frozen=True)
class TrainingStep:
    """Computes the losses of a batch.

    `sample_weights` maps sample indices `(n,)` to the weights of their terms of the base loss. With N samples in the
    batch of all processes, it is `sum(w_i l_i) / N`: the weights have a mean of 1 over the training set, and are not
    normalized within a batch. With `freeze_batch_norm`, batch norm uses its running statistics and keeps them.
    Modules `in_eval_mode` compute as in evaluations. `texts` has the captions' embeddings by a frozen text tower.
    `autocast` is that of the forward, for where the forward of the model is replaced, and `reference_autocast` that of
    the reference, for what it computes in a step.
    """

    encoder: DualEncoder
    base_loss: BaseLoss
    candidates: Candidates
    regularizer: Regularizer | None = None
    reference: Reference | None = None
    head: nn.Linear | None = None
    mini_batch_size: int | None = None
    sample_weights: Callable[[Tensor], Tensor] | None = None
    freeze_batch_norm: bool = False
    in_eval_mode: Sequence[nn.Module] = ()
    texts: FrozenTexts | None = None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    reference_autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self, model: nn.Module, batch: Mapping[str, Any], reg_weight: float) -> StepLosses:
        """The losses of `batch` by one forward of `model`, which may be inside a parallel wrapper."""
        inner = unwrapped(model)
        # In every step, since Trainer puts all of the model into training mode before.
        if self.freeze_batch_norm:
            freeze_batch_norm(inner)
        for module in self.in_eval_mode:
            module.eval()
        # Once for the model and the reference.
        batch = {**batch, "pixel_values": self.encoder.normalized(batch["pixel_values"])}
        outputs = self._forward(model, inner, batch)
        gathered = gather_batch(batch, outputs, spurious=self.candidates.drawn_per_example)
        base_terms = self.base_loss(outputs, gathered, batch)
        if self.sample_weights is not None:
            base_terms = base_terms * self.sample_weights(batch["sample_index"]).to(base_terms.dtype)
        base = batch_mean(base_terms, batch, gathered)
        parts = _parts(batch, outputs, gathered) | {nan_check.BASE_LOSS: base}
        if self.regularizer is None or self.reference is None:
            return StepLosses(base, base, torch.zeros_like(base), parts=parts)
        with self.reference_autocast():
            compared = self.candidates.compare(batch, outputs, gathered, self.reference)
        inputs = self._regularizer_inputs(self.reference, inner, batch, outputs, compared)
        terms = self.regularizer.compute(inputs)
        reg = batch_mean(terms, batch, gathered) if terms.ndim else terms
        if self.regularizer.minimal_at_reference and self.reference.equals(inner):
            # The gradient is 0 here. What rounding leaves of it must not reach Adam, which would scale it up to full
            # steps in every parameter that only the spurious captions reach. It is made 0 rather than None, so that
            # Adam counts the step and decays the weights of these parameters like all others.
            reg = reg.detach() + 0 * reg
        parts[nan_check.REFERENCE_IMAGES] = inputs.reference_image_embeds.sum()
        parts[nan_check.REFERENCE_CANDIDATES] = inputs.reference_column_embeds.sum()
        drift = _plain_drift(batch, outputs, gathered, compared, self.reference.logit_scale)
        return StepLosses(base + reg_weight * reg, base, reg, drift, parts | {nan_check.REGULARIZER: reg})

    def _forward(self, model: nn.Module, inner: nn.Module, batch: Mapping[str, Any]) -> DualOutput:
        texts = None if self.texts is None else self.texts.rows(batch)
        if texts is not None:
            batch = batch_images(batch)
        alone: Literal["images"] | None = None if texts is None else "images"
        with forward_in_chunks(inner, self.mini_batch_size, alone=alone, autocast=self.autocast):
            outputs = self.encoder.forward(model, batch, self.head)
        if texts is not None:
            outputs.text_embeds = texts
        return outputs

    def _regularizer_inputs(
        self,
        reference: Reference,
        model: nn.Module,
        batch: Mapping[str, Any],
        outputs: DualOutput,
        compared: ComparedEmbeds,
    ) -> RegularizerInputs:
        labels, column_labels = batch.get("labels"), compared.labels
        if labels is None and self.regularizer is not None and self.regularizer.captions_as_labels:
            labels = batch["caption_keys"]
            column_labels = gather_values(labels)
        return RegularizerInputs(
            image_embeds=outputs.image_embeds,
            column_embeds=compared.candidates,
            reference_image_embeds=compared.reference_images,
            reference_column_embeds=compared.reference_candidates,
            logit_scale=reference.logit_scale,
            labels=labels,
            column_labels=column_labels,
            column_valid=compared.valid,
            weight_pairs=lambda: reference.weight_pairs(model),
        )


@torch.no_grad()
def _plain_drift(
    batch: Mapping[str, Any],
    outputs: DualOutput,
    gathered: GatheredBatch,
    compared: ComparedEmbeds,
    logit_scale: Tensor,
) -> Tensor | None:
    if gathered.captions is None or compared.reference_captions is None:
        return None
    excluded = None if gathered.valid is None else ~gathered.valid.expand(len(outputs.image_embeds), -1)
    tuned = (outputs.image_embeds, gathered.captions)
    reference = (compared.reference_images, gather_values(compared.reference_captions))
    return batch_mean(alignment_rows(*tuned, *reference, logit_scale, excluded), batch, gathered)


@torch.no_grad()
def _parts(batch: Mapping[str, Any], outputs: DualOutput, gathered: GatheredBatch) -> dict[str, Tensor]:
    parts = {
        nan_check.PIXELS: batch["pixel_values"],
        nan_check.IMAGES: outputs.image_embeds,
        nan_check.CAPTIONS: gathered.captions,
        nan_check.SPURIOUS: gathered.spurious,
        nan_check.SCALE: outputs.logit_scale,
    }
    return {name: part.sum(dtype=torch.float32) for name, part in parts.items() if part is not None}


# In the order of their fields.
_LOGGED = ("loss", "base_loss", "reg_loss", "plain_drift")


class RunningLosses:
    """Means of the losses since they were last logged, without synchronizing the device in every step."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._last: Tensor | None = None
        self._count = 0

    def add(self, losses: StepLosses) -> None:
        """Add the losses of one batch."""
        found = [value for name in _LOGGED if (value := getattr(losses, name)) is not None]
        values = torch.stack(found).detach()
        self._sum = values if self._sum is None else self._sum + values
        self._last = values[0]
        self._count += 1

    def corrected(self, loss: Tensor, parts: int) -> Tensor:
        """`loss`, one of `parts` of the loss of a step; as a whole it takes the place of what was added last."""
        if self._sum is not None and self._last is not None:
            self._sum = torch.cat([self._sum[:1] + (parts * loss.detach() - self._last), self._sum[1:]])
        return loss

    def pop(self) -> dict[str, float]:
        """The means over steps and processes, and start anew; empty if nothing was added."""
        if self._sum is None:
            return {}
        means = mean_over_processes(self._sum / self._count).tolist()
        self._sum, self._count = None, 0
        return dict(zip(_LOGGED, means, strict=False))

    def state(self) -> dict[str, Any] | None:
        """What has been added since, for JSON: the mean over processes, which call this together."""
        if self._sum is None:
            return None
        sums = mean_over_processes(self._sum)
        return {"sums": sums.tolist(), "dtype": str(sums.dtype).removeprefix("torch."), "count": self._count}

    def restore(self, state: dict[str, Any] | None, device: torch.device) -> None:
        """Continue from a state; None starts anew."""
        self._sum, self._count = None, 0
        if state is not None:
            self._sum = torch.tensor(state["sums"], dtype=getattr(torch, state["dtype"]), device=device)
            self._count = int(state["count"])
