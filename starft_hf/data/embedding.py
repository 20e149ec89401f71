"""The embedding loop: processes share the texts or images, and each gets all rows in the original order."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from starft_hf.data.collator import stack_examples
from starft_hf.data.decoding import SkippedImages
from starft_hf.utils.collectives import gather_shards, shard_indices


TEXTS_PER_CHUNK = 256

EmbedTexts = Callable[[Sequence[str]], Tensor]


class Pieces(Protocol):
    """Where a process keeps its rows while it computes them, so that an interrupted computation resumes.

    Attributes:
        size: rows of a piece, at least.
    """

    size: int

    def load(self) -> list[Tensor]:
        """The pieces that are there, from the first one."""

    def save(self, number: int, rows: Tensor) -> None:
        """Keep the piece of this number, counted from 0."""


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
    pieces: Pieces | None = None,
) -> Tensor:
    """The embeddings `(len(texts), D)` of distinct texts, at least one, computed by all processes together.

    Neighbors by `sort_key` share a chunk; by default those of about the same length, so that little is padding.
    """
    order = sorted(range(len(texts)), key=lambda index: sort_key(texts[index]))
    mine = [texts[order[place]] for place in shard_indices(len(texts))]
    # A process without texts of its own embeds one for the width of the rows.
    chunks = _resumed(lambda done: embedded_chunks(embed, mine[done:], chunk_size, progress), pieces)
    like = chunks[-1] if chunks else embed(texts[:1])[:0]
    own = torch.cat([chunk.to(like.device) for chunk in chunks] or [like])
    # A third copy of what may be gigabytes.
    del chunks
    embeds = gather_shards(own, len(texts))
    return torch.empty_like(embeds).index_copy_(0, torch.tensor(order, device=embeds.device), embeds)


def embed_images(
    embed: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    examples: Dataset[Any],
    indices: Sequence[int],
    device: torch.device,
    *,
    batch_size: int,
    num_workers: int = 0,
    progress: str | None = None,
    pieces: Pieces | None = None,
) -> tuple[Tensor, ...]:
    """The outputs of `embed` for images, `(len(indices), ...)` each, computed by all processes together.

    `embed` maps the tensors of a batch without texts, on `device`, to tensors with one row per image; to a single
    tensor where `pieces` are given.
    """
    mine = [indices[place] for place in shard_indices(len(indices))]

    def compute(done: int) -> Iterator[tuple[Tensor, ...]]:
        # A process without images of its own embeds one for the shapes of the rows.
        rest = mine[done:] if mine else indices[:1]
        loader = DataLoader(
            Subset(examples, rest),
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=stack_examples,
            # A loader draws a seed for its workers; from a generator of its own, it leaves the global one alone.
            generator=torch.Generator(),
        )
        skipped = SkippedImages()
        with tqdm(total=len(mine), initial=done, desc=progress, unit=" images", disable=progress is None) as bar:
            for batch in loader if rest else ():
                if mine:
                    skipped.record(batch)
                tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
                yield embed(tensors)
                bar.update(len(next(iter(tensors.values()))))

    if pieces is None:
        own = [torch.cat(parts)[: len(mine)] for parts in zip(*compute(0), strict=True)]
    else:
        rows = _resumed(lambda done: (part for (part,) in compute(done)), pieces)
        own = [torch.cat([part.to(device) for part in rows])[: len(mine)]]
    return tuple(gather_shards(rows, len(indices)) for rows in own)


def check_finite(rows: Tensor, what: str) -> None:
    """Raise ValueError if some of the rows `(N, ...)`, which `what` names, have NaN: no class is nearest to them."""
    bad = int((~rows.isfinite()).reshape(len(rows), -1).any(-1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(rows)} {what} are not finite, so nothing can be measured by them; the model's weights are "
            "damaged, or its precision is too low: pass a checkpoint from before, or the model in float32"
        )


def _resumed(compute: Callable[[int], Iterator[Tensor]], pieces: Pieces | None) -> list[Tensor]:
    """The rows that `compute` yields after the first `done` ones, behind those that `pieces` holds, in parts."""
    parts = [] if pieces is None else pieces.load()
    new: list[Tensor] = []
    for chunk in compute(sum(map(len, parts))):
        new.append(chunk)
        if pieces is not None and sum(map(len, new)) >= pieces.size:
            parts.append(torch.cat(new))
            pieces.save(len(parts) - 1, parts[-1])
            new = []
    return parts + new
