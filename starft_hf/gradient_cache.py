"""Large batches in little memory: the model runs chunk by chunk, the losses see the whole batch.

Contrastive and alignment losses compare every row with every other, so gradients cannot be accumulated over smaller
batches. The embeddings, however, are computed row by row. Their chunks are computed once without remembering
anything but the embeddings; when the loss's gradient comes back, each chunk is computed again, one at a time, and
back-propagated. Losses and gradients are those of the whole batch. (Gradient caching, arXiv 2101.06983, by way of
torch's checkpointing, which replays generators and autocast and leaves one backward pass for parallel wrappers.)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from starft_hf.models import TEXT_ARGUMENTS


@dataclass
class ChunkedOutput(ModelOutput):
    """What the forward returns within `forward_in_chunks`: `(N, D)` and `(M, D)`."""

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


@contextmanager
def forward_in_chunks(model: nn.Module, chunk_size: int | None) -> Iterator[None]:
    """Within, the forward of `model` computes the rows of images and texts a chunk at a time.

    It is the forward inside a parallel wrapper that is replaced, so that the wrapper still sees one forward and one
    backward.

    Args:
        model: a dual encoder, without its wrapper.
        chunk_size: images per chunk; None changes nothing.
    """
    if chunk_size is None:
        yield
        return
    whole, own = model.forward, model.__dict__.get("forward")
    model.forward = lambda **inputs: _forward(whole, chunk_size, inputs)
    try:
        yield
    finally:
        if own is None:
            del model.__dict__["forward"]
        else:
            model.forward = own


def _forward(whole: Callable[..., Any], chunk_size: int, inputs: Mapping[str, Any]) -> ChunkedOutput:
    images = {name: value for name, value in inputs.items() if name not in TEXT_ARGUMENTS}
    texts = {name: value for name, value in inputs.items() if name in TEXT_ARGUMENTS}
    num_chunks = -(-_rows(images) // chunk_size)
    # One side at a time, so that activations of both never exist together. The forward takes both sides: a single row
    # stands in for the other one, and its result is dropped.
    one_image, one_text = _first(images), _first(texts)
    # Texts first, because autograd goes backwards: images, whose activations are larger, are then computed again while
    # there are no gradients of the text tower yet.
    text_embeds = [_forward_chunk(whole, {**one_image, **chunk})[1] for chunk in _split(texts, num_chunks)]
    image_embeds = [_forward_chunk(whole, {**chunk, **one_text})[0] for chunk in _split(images, num_chunks)]
    return ChunkedOutput(torch.cat(image_embeds), torch.cat(text_embeds))


def _first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:1] for name, value in tensors.items()}


def _rows(tensors: Mapping[str, Tensor]) -> int:
    return len(next(iter(tensors.values())))


def _split(tensors: Mapping[str, Tensor], num_chunks: int) -> list[dict[str, Tensor]]:
    """Cut tensors along their rows into at most `num_chunks` parts of nearly equal size, none of them empty."""
    parts = {name: value.tensor_split(min(num_chunks, len(value))) for name, value in tensors.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _forward_chunk(whole: Callable[..., Any], inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    names = list(inputs)

    def embed(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        outputs = whole(**dict(zip(names, tensors, strict=True)))
        return outputs.image_embeds, outputs.text_embeds

    if not torch.is_grad_enabled():
        return embed(*inputs.values())
    return checkpoint(embed, *inputs.values(), use_reentrant=False)
