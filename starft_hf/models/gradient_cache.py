"""Large batches in little memory: the model runs chunk by chunk, the losses see the whole batch.

Contrastive and alignment losses compare every row with every other, so gradients cannot be accumulated over smaller
batches. The embeddings, however, are computed row by row. Their chunks are computed once without remembering
anything but the embeddings; when the loss's gradient comes back, each chunk is computed again, one at a time, and
back-propagated. Losses and gradients are those of the whole batch. (Gradient caching, arXiv 2101.06983, by way of
torch's checkpointing, which replays generators and autocast and leaves one backward pass for parallel wrappers.)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput

from starft_hf.models.encoder import TEXT_ARGUMENTS, unit_rows


@dataclass
class ChunkedOutput(ModelOutput):
    """What the forward returns within `forward_in_chunks`: unit rows, `(N, D)` and `(M, D)`."""

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
    own, towers = model.__dict__.get("forward"), _towers_of(model)
    model.forward = lambda **inputs: _forward(towers, chunk_size, inputs)
    try:
        yield
    finally:
        if own is None:
            del model.__dict__["forward"]
        else:
            model.forward = own


# From the arguments of a chunk to its embeddings.
Tower = Callable[..., tuple[Tensor, ...]]


def _towers_of(model: nn.Module) -> tuple[Tower, Tower] | Tower:
    """What embeds images and what embeds texts, or what embeds both for models that do not offer the two alone."""
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        whole = model.forward

        def both(**inputs: Tensor) -> tuple[Tensor, ...]:
            outputs = whole(**inputs)
            return outputs.image_embeds, outputs.text_embeds

        return both
    features: Any = model
    return (
        lambda **inputs: (features.get_image_features(**inputs).pooler_output,),
        lambda **inputs: (features.get_text_features(**inputs).pooler_output,),
    )


def _forward(towers: tuple[Tower, Tower] | Tower, chunk_size: int, inputs: Mapping[str, Any]) -> ChunkedOutput:
    images = {name: value for name, value in inputs.items() if name not in TEXT_ARGUMENTS}
    texts = {name: value for name, value in inputs.items() if name in TEXT_ARGUMENTS}
    num_chunks = -(-_rows(images) // chunk_size)
    image_chunks, text_chunks = _split(images, num_chunks), _split(texts, num_chunks)
    if isinstance(towers, tuple):
        # One side at a time, so that activations of both never exist together. Texts first, because autograd goes
        # backwards: images, whose activations are larger, are then computed again while there are no gradients of the
        # text tower yet.
        text_embeds = [_forward_chunk(towers[1], chunk)[0] for chunk in text_chunks]
        image_embeds = [_forward_chunk(towers[0], chunk)[0] for chunk in image_chunks]
        return _joined(image_embeds, text_embeds)
    # Where texts run out, the first one stands in and its result is dropped.
    stand_in = {name: value[:1] for name, value in texts.items()}
    filled = text_chunks + [stand_in] * (len(image_chunks) - len(text_chunks))
    pairs = [_forward_chunk(towers, {**image, **text}) for image, text in zip(image_chunks, filled, strict=True)]
    return _joined([pair[0] for pair in pairs], [pair[1] for pair in pairs[: len(text_chunks)]])


def _joined(image_embeds: Sequence[Tensor], text_embeds: Sequence[Tensor]) -> ChunkedOutput:
    return ChunkedOutput(unit_rows(torch.cat(list(image_embeds))), unit_rows(torch.cat(list(text_embeds))))


def _rows(tensors: Mapping[str, Tensor]) -> int:
    return len(next(iter(tensors.values())))


def _split(tensors: Mapping[str, Tensor], num_chunks: int) -> list[dict[str, Tensor]]:
    """Cut tensors along their rows into at most `num_chunks` parts of nearly equal size, none of them empty."""
    parts = {name: value.tensor_split(min(num_chunks, len(value))) for name, value in tensors.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _forward_chunk(tower: Tower, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    names = list(inputs)

    def embed(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tower(**dict(zip(names, tensors, strict=True)))

    if not torch.is_grad_enabled():
        return embed(*inputs.values())
    return checkpoint(embed, *inputs.values(), use_reentrant=False)
