"""What discovery embeds: captions, and the images of a dataset with their labels."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from starft_hf.data import embedding
from starft_hf.data.columns import ImageColumns
from starft_hf.data.examples import EvaluationExampleMaker, IndexedExamples
from starft_hf.data.images import ImagePreprocessor
from starft_hf.models.adapters import base_model_of
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.loading import load_model, load_processor
from starft_hf.models.modes import evaluation_mode
from starft_hf.spuriosity.settings import SearchSettings


def load_encoder(
    model: str | PathLike[str] | nn.Module, processor: Any, *, trust_remote_code: bool = False
) -> tuple[nn.Module, DualEncoder]:
    """A dual encoder and its spec; the arguments are as in `discover_spuriosity`."""
    trusted = {"trust_remote_code": trust_remote_code}
    model = load_model(model, **trusted)
    return model, DualEncoder.of(model, load_processor(base_model_of(model), processor, **trusted))


def embed_texts(model: nn.Module, encoder: DualEncoder, texts: Sequence[str]) -> Tensor:
    """Unit rows of distinct texts, `(N, D)`, on the CPU."""
    # In alphabetical order, texts with a common beginning share a chunk, and its computation where the tower can.
    with evaluation_mode(model):
        embeds = embedding.embed_texts(lambda chunk: encoder.encode(model, texts=chunk), texts, sort_key=str)
    embedding.check_finite(embeds, "embeddings of texts")
    return embeds.float().cpu()


def embed_images(
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    indices: Sequence[int],
    columns: ImageColumns,
    settings: SearchSettings,
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows `(N, D)` and labels `(N,)` of images of a dataset, and which of them could be read, `(N,)`."""
    preprocessor = ImagePreprocessor(encoder.image_processor, decoding=settings.image_decoding)
    maker = EvaluationExampleMaker(replace(columns, groups=None), preprocessor)

    def embed(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        labels = batch["labels"]
        is_valid = batch.get("valid", torch.ones_like(labels, dtype=torch.bool))
        return encoder.encode(model, images=batch), labels, is_valid

    device = next(model.parameters()).device
    examples = IndexedExamples(dataset, maker, settings.on_bad_image, settings.image_cache)
    examples.prepare(device)
    with evaluation_mode(model):
        embeds, labels, is_valid = embedding.embed_images(
            embed,
            examples,
            indices,
            device,
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
            progress="Embedding images" if settings.progress else None,
        )
    embedding.check_finite(embeds[is_valid], "embeddings of images")
    return embeds.float().cpu(), labels.cpu(), is_valid.cpu()
