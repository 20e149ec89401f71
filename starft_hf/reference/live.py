"""References that run a model: a frozen copy, or the trained model with its adapter switched off."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from starft_hf.data.captions import CaptionBank
from starft_hf.data.embedding import embedded_chunks
from starft_hf.models.encoder import DualEncoder, logit_scale_of
from starft_hf.models.fsdp import full_tensor
from starft_hf.models.gradient_cache import forward_in_chunks
from starft_hf.models.modes import differs_in_training, evaluation_mode
from starft_hf.models.precision import exact_copy
from starft_hf.objectives.losses import unit_rows
from starft_hf.reference.base import Reference, ReferenceEmbeds, ReferenceInfo
from starft_hf.reference.fingerprint import model_fingerprint
from starft_hf.utils.preparation import prepared


class LiveReference(Reference):
    """A reference that runs a model with the spec `encoder`, `chunk_size` images per forward."""

    kind: str

    def __init__(self, model: nn.Module, encoder: DualEncoder, chunk_size: int | None = None):
        self.model = model
        self.encoder = encoder
        self.chunk_size = chunk_size
        self.forwards = 0
        self._contexts: Tensor | None = None
        # A snapshot, since the temperature may be trained; in float32 or wider, as the losses are.
        self.logit_scale = logit_scale_of(model).detach().clone()

    @property
    def info(self) -> ReferenceInfo:
        return ReferenceInfo(self.kind, rows=0, bytes=0, where="nowhere", forwards=self.forwards)

    @cached_property
    def fingerprint(self) -> str:
        """A key of everything the reference's embeddings depend on, except their inputs."""
        return model_fingerprint(self.model)

    @abstractmethod
    def _as_reference(self) -> Any:
        """A context in which `self.model` computes as the reference, without gradients."""

    def prepare(self, device: torch.device) -> None:
        self.model.to(device)
        self.logit_scale = self.logit_scale.to(device)

    def embed_batch(self, batch: Mapping[str, Any]) -> ReferenceEmbeds:
        def forward() -> tuple[Tensor, Tensor]:
            outputs = self.encoder.forward(self.model, batch)
            return outputs.image_embeds, outputs.text_embeds

        self._check_device(batch)
        images, texts = self._run(forward)
        return ReferenceEmbeds(images, *rows_of_texts(texts, batch))

    def embed_images(self, batch: Mapping[str, Any]) -> Tensor:
        self._check_device(batch)
        return self._run(lambda: (self.encoder.encode(self.model, images=batch),))[0]

    def embed_texts(self, texts: Sequence[str] | Mapping[str, Any]) -> Tensor:
        """Unit embeddings `(len(texts), D)` of texts, given as strings or as tensors."""
        return self._run(lambda: (self.encoder.encode(self.model, texts=texts),))[0]

    def contexts(self, bank: CaptionBank) -> Tensor:
        if self._contexts is None:
            with torch.autocast(self.logit_scale.device.type, enabled=False):
                chunks = list(embedded_chunks(self.embed_texts, list(bank.spurious_captions())))
            self._contexts = mean_over_classes(torch.cat(chunks), bank)
        return self._contexts

    def weight_pairs(self, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        weights = dict(model.named_parameters())
        for name, value in self.model.named_parameters():
            yield full_tensor(weights[name]), value

    def _check_device(self, batch: Mapping[str, Any]) -> None:
        device = next(self.model.parameters()).device
        # Trainer puts batches on the GPU from the start, and this model is put there by `prepare`.
        prepared(self.model if device.type == batch["pixel_values"].device.type else None)

    def _run(self, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        self.forwards += 1
        with self._as_reference(), forward_in_chunks(self.model, self.chunk_size):
            outputs = compute()
        # Autograd cannot record operations on tensors made in inference mode.
        return tuple(output.clone() for output in outputs)


def rows_of_texts(texts: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Of the embeddings of a batch's texts, those of its spurious captions, and of its plain ones if it has any."""
    captions = texts[batch["caption_rows"]] if "caption_rows" in batch else None
    return texts[batch["spurious_rows"]], captions


def mean_over_classes(embeds: Tensor, bank: CaptionBank) -> Tensor:
    """One unit row per spurious template, `(T, D)`, from the rows of all spurious captions in the order of their ids.

    Templates that may not be drawn for any class have no row.
    """
    templates = torch.tensor([bank.parts_of(index)[2] for index in range(len(embeds))], device=embeds.device)
    return unit_rows(torch.stack([embeds[templates == number].mean(0) for number in templates.unique()]))


class FrozenReference(LiveReference):
    """A frozen copy of a dual encoder.

    Args:
        model: the model; later changes to it do not affect the copy.
        encoder: its spec.
        dtype: dtype of the copy; None keeps the model's.
        chunk_size: images per forward; None runs a batch at once.
    """

    kind = "frozen copy"

    def __init__(
        self, model: nn.Module, encoder: DualEncoder, dtype: torch.dtype | None = None, chunk_size: int | None = None
    ):
        super().__init__(exact_copy(model).eval().requires_grad_(False), encoder, chunk_size)
        self.exact = dtype is None
        if dtype is not None:
            self.model.to(dtype)
        self._differs = False

    def _as_reference(self) -> Any:
        return torch.inference_mode()

    def equals(self, model: nn.Module) -> bool:
        # Weights that have changed do not change back, so the first difference settles it.
        if not self._differs:
            self._differs = not self.exact or not _computes_with(model, dict(self.model.named_parameters()))
        return not self._differs


class AdapterReference(LiveReference):
    """The trained model with its adapter switched off: no second copy of the weights.

    Args:
        model: a `PeftModel`.
        encoder: its spec.
        chunk_size: images per forward; None runs a batch at once.
    """

    kind = "adapter switched off"

    def __init__(self, model: nn.Module, encoder: DualEncoder, chunk_size: int | None = None):
        super().__init__(model, encoder, chunk_size)
        self._start: dict[str, Tensor] | None = None
        if self._adapter_does_nothing():
            trained = (pair for pair in model.named_parameters() if pair[1].requires_grad)
            self._start = {name: value.detach().clone() for name, value in trained}

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        adapted: Any = self.model
        trained = [(value, value.requires_grad) for value in self.model.parameters()]
        with adapted.disable_adapter(), evaluation_mode(self.model):
            yield
        # PEFT switches the adapter on with gradients for all of it, whatever was frozen.
        for value, requires_grad in trained:
            value.requires_grad_(requires_grad)

    def _adapter_does_nothing(self) -> bool:
        """Whether a blank image and a short text have the same embeddings with the adapter on and off."""
        batch = {**self.encoder.blank_image(), **self.encoder.encode_texts(["a"])}
        device = next(self.model.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        with evaluation_mode(self.model):
            on = self.encoder.forward(self.model, batch)
            with self._as_reference():
                off = self.encoder.forward(self.model, batch)
        return torch.equal(on.image_embeds, off.image_embeds) and torch.equal(on.text_embeds, off.text_embeds)

    def equals(self, model: nn.Module) -> bool:
        # Weights that have changed do not change back, so the first difference settles it.
        if self._start is not None and not _computes_with(model, self._start):
            self._start = None
        return self._start is not None


def _computes_with(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether `model` has exactly these weights, and training mode does not change what it computes with them."""
    # Flat, because FSDP shards a scalar as a vector of length 1.
    own = {name: full_tensor(value).flatten() for name, value in model.named_parameters() if name in weights}
    return not differs_in_training(model) and all(
        name in own and torch.equal(value.flatten().to(own[name].device), own[name]) for name, value in weights.items()
    )
