"""Gradient caching (arXiv 2101.06983): the model runs chunk by chunk, the losses see the whole batch.

Contrastive and alignment losses compare every row with every other, so gradients cannot be accumulated over smaller
batches. The embeddings, however, are computed row by row. A first pass over the chunks keeps nothing but their
embeddings; in the backward pass, each chunk is computed again, one at a time, and back-propagated. Losses and
gradients are those of the whole batch. torch's checkpointing does the work: it replays generators and autocast, and
parallel wrappers see a single backward pass.
"""

from collections.abc import Callable, Iterator, Mapping
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
    """Within, the forward of the unwrapped `model` computes at most `chunk_size` images at a time; None: all.

    The forward inside a parallel wrapper is replaced, so that the wrapper still sees one forward and one backward.
    """
    if chunk_size is None:
        yield
        return
    own = model.__dict__.get("forward")
    model.forward = _chunked_forward(model, chunk_size)
    try:
        yield
    finally:
        if own is None:
            del model.__dict__["forward"]
        else:
            model.forward = own


def _chunked_forward(model: Any, chunk_size: int) -> Callable[..., ChunkedOutput]:
    whole = model.forward
    has_towers = hasattr(model, "get_image_features") and hasattr(model, "get_text_features")

    def embed_images(**inputs: Tensor) -> Tensor:
        return model.get_image_features(**inputs).pooler_output

    def embed_texts(**inputs: Tensor) -> Tensor:
        return model.get_text_features(**inputs).pooler_output

    def embed_both(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = whole(**inputs)
        return outputs.image_embeds, outputs.text_embeds

    def forward(**inputs: Tensor) -> ChunkedOutput:
        num_chunks = -(-len(inputs["pixel_values"]) // chunk_size)
        images = _split({name: value for name, value in inputs.items() if name not in TEXT_ARGUMENTS}, num_chunks)
        texts = _split({name: value for name, value in inputs.items() if name in TEXT_ARGUMENTS}, num_chunks)
        if has_towers:
            # One tower at a time, so that activations of both never exist together. Texts first, because autograd goes
            # backwards: images, whose activations are larger, are then computed again before the text tower has
            # gradients.
            text_embeds = [_recomputed(embed_texts, chunk) for chunk in texts]
            image_embeds = [_recomputed(embed_images, chunk) for chunk in images]
        else:
            # If there are fewer chunks of texts, a text fills the rest, and its results are dropped.
            filler = {name: value[:1] for name, value in texts[0].items()}
            filled = texts + [filler] * (len(images) - len(texts))
            pairs = [_recomputed(embed_both, {**image, **text}) for image, text in zip(images, filled, strict=True)]
            image_embeds = [pair[0] for pair in pairs]
            text_embeds = [pair[1] for pair in pairs[: len(texts)]]
        return ChunkedOutput(unit_rows(torch.cat(image_embeds)), unit_rows(torch.cat(text_embeds)))

    return forward


def _split(tensors: Mapping[str, Tensor], num_chunks: int) -> list[dict[str, Tensor]]:
    """Split tensors along their rows into at most `num_chunks` parts of nearly equal size, none of them empty."""
    parts = {name: value.tensor_split(min(num_chunks, len(value))) for name, value in tensors.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def _recomputed(embed: Callable[..., Any], inputs: Mapping[str, Tensor]) -> Any:
    # Positional, because checkpointing replays the generators of the devices of positional tensors alone.
    def positional(*tensors: Tensor) -> Any:
        return embed(**dict(zip(inputs, tensors, strict=True)))

    return checkpoint(positional, *inputs.values(), use_reentrant=False)
