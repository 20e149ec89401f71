"""Embeddings of texts and of the images of a dataset, computed by all processes together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from starft_hf.data.collator import StarFTCollator
from starft_hf.data.columns import ImageColumns
from starft_hf.data.decoding import SkippedImages
from starft_hf.data.examples import EvaluationExampleMaker, IndexedExamples
from starft_hf.data.images import ImagePreprocessor
from starft_hf.models.encoder import DualEncoder, batch_images
from starft_hf.models.modes import evaluation_mode
from starft_hf.spuriosity.settings import SearchSettings
from starft_hf.utils.collectives import gather_shards, shard_indices


_TEXTS_AT_ONCE = 256


def embed_texts(model: nn.Module, encoder: DualEncoder, texts: Sequence[str]) -> Tensor:
    """Unit rows of distinct texts, `(N, D)`, on the CPU."""
    # In alphabetical order, texts with a common beginning share a chunk, and its computation where the tower can.
    order = sorted(range(len(texts)), key=lambda index: texts[index])
    mine = [texts[order[place]] for place in shard_indices(len(order))]
    with evaluation_mode(model):
        starts = range(0, len(mine), _TEXTS_AT_ONCE)
        chunks = [encoder.encode(model, texts=mine[start : start + _TEXTS_AT_ONCE]) for start in starts]
        share = torch.cat(chunks) if chunks else encoder.encode(model, texts=texts[:1])[:0]
    embeds = gather_shards(share, len(order)).float().cpu()
    return torch.empty_like(embeds).index_copy_(0, torch.tensor(order), embeds)


def embed_images(
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    indices: Sequence[int],
    columns: ImageColumns,
    settings: SearchSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows `(N, D)` and labels `(N,)` of images of a dataset, and which of them could be read, `(N,)`."""
    maker = EvaluationExampleMaker(replace(columns, groups=None), ImagePreprocessor(encoder.image_processor))
    mine = [indices[place] for place in shard_indices(len(indices))]
    loader = DataLoader(
        # For a process without work, one image gives the shapes.
        Subset(IndexedExamples(dataset, maker, settings.on_bad_image), mine or indices[:1]),
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        collate_fn=StarFTCollator(encoder.encode_texts),
        # A loader draws a seed for its workers; with a generator of its own, the global one stays as it is.
        generator=torch.Generator(),
    )
    device = next(model.parameters()).device
    skipped = SkippedImages()
    parts = []
    with (
        evaluation_mode(model),
        tqdm(total=len(mine), desc="Embedding", unit=" images", disable=not settings.progress) as bar,
    ):
        for batch in loader:
            skipped.note(batch)
            moved = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
            labels = moved["labels"]
            embeds = encoder.encode(model, images=batch_images(moved))
            parts.append((embeds, labels, moved.get("valid", torch.ones_like(labels, dtype=torch.bool))))
            bar.update(len(labels))
    share = [torch.cat(part)[: len(mine)] for part in zip(*parts, strict=True)]
    embeds, labels, is_valid = (gather_shards(part, len(indices)).cpu() for part in share)
    return embeds.float(), labels, is_valid
