"""The embedding loop: processes share the texts or images, and each gets all rows in the original order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from starft_hf.data.collator import stack_examples
from starft_hf.data.decoding import SkippedImages
from starft_hf.data.examples import IndexedExamples
from starft_hf.utils.collectives import gather_shards, shard_indices


TEXTS_PER_CHUNK = 256

EmbedTexts = Callable[[Sequence[str]], Tensor]


def embedded_chunks(
    embed: EmbedTexts, texts: Sequence[str], chunk_size: int = TEXTS_PER_CHUNK, progress: str | None = None
) -> Iterator[Tensor]:
    """The embeddings of `texts`, `(n, D)` for every chunk of n, by this process alone, with a named progress bar."""
    with tqdm(total=len(texts), desc=progress, unit=" captions", disable=progress is None) as bar:
        for start in range(0, len(texts), chunk_size):
            chunk = texts[start : start + chunk_size]
            yield embed(chunk)
            bar.update(len(chunk))


def embed_texts(
    embed: EmbedTexts,
    texts: Sequence[str],
    *,
    sort_key: Callable[[str], Any] = lambda text: (len(text), text),
    chunk_size: int = TEXTS_PER_CHUNK,
    progress: str | None = None,
) -> Tensor:
    """The embeddings `(len(texts), D)` of distinct texts, at least one, computed by all processes together.

    Neighbors by `sort_key` share a chunk; by default those of about the same length, so that little is padding.
    """
    order = sorted(range(len(texts)), key=lambda index: sort_key(texts[index]))
    mine = [texts[order[place]] for place in shard_indices(len(texts))]
    # A process without texts of its own embeds one for the width of the rows.
    chunks = list(embedded_chunks(embed, mine, chunk_size, progress)) or [embed(texts[:1])[:0]]
    embeds = gather_shards(torch.cat(chunks), len(texts))
    return torch.empty_like(embeds).index_copy_(0, torch.tensor(order, device=embeds.device), embeds)


def embed_images(
    embed: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    examples: IndexedExamples,
    indices: Sequence[int],
    device: torch.device,
    *,
    batch_size: int,
    num_workers: int = 0,
    progress: str | None = None,
) -> tuple[Tensor, ...]:
    """The outputs of `embed` for images, `(len(indices), ...)` each, computed by all processes together.

    `embed` maps the tensors of a batch without texts, on `device`, to tensors with one row per image.
    """
    mine = [indices[place] for place in shard_indices(len(indices))]
    loader = DataLoader(
        # A process without images of its own embeds one for the shapes of the rows.
        Subset(examples, mine or indices[:1]),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=stack_examples,
        # A loader draws a seed for its workers; from a generator of its own, it leaves the global one alone.
        generator=torch.Generator(),
    )
    skipped, chunks = SkippedImages(), []
    with tqdm(total=len(mine), desc=progress, unit=" images", disable=progress is None) as bar:
        for batch in loader:
            if mine:
                skipped.record(batch)
            tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
            chunks.append(embed(tensors))
            bar.update(len(chunks[-1][0]))
    own = [torch.cat(parts)[: len(mine)] for parts in zip(*chunks, strict=True)]
    return tuple(gather_shards(rows, len(indices)) for rows in own)
