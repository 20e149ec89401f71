"""Image-text retrieval: recall both ways, by a trainer or without one."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.utils import logging

from starft_hf.data.columns import ColumnSettings
from starft_hf.data.decoding import RAISE, SkippedImages
from starft_hf.data.embedding import embed_texts
from starft_hf.data.images import SCALED
from starft_hf.data.retrieval import CAPTION_COLUMN, RETRIEVAL, RetrievalExampleMaker, retrieval_columns
from starft_hf.evaluation.counts import no_rows, warn_if_nan
from starft_hf.evaluation.passes import EvaluationSettings
from starft_hf.evaluation.recall import retrieval_hits
from starft_hf.evaluation.results import RetrievalResult
from starft_hf.models.encoder import DualEncoder, batch_images
from starft_hf.models.modes import evaluation_mode
from starft_hf.utils.collectives import gather_values, world_size


logger = logging.get_logger(__name__)

CUTOFFS = (1, 5, 10)


class RetrievalEvaluation:
    """Embeds the images of the batches of one dataset, and in the end its captions, and counts what is found.

    What it keeps is one embedding for every distinct image and caption; a matrix of all similarities is never made.
    """

    def __init__(self, encoder: DualEncoder):
        self.encoder = encoder
        self.skipped = SkippedImages()
        self.num_skipped = 0
        # By the key of an image: the lowest sample with it and its place among the embeddings, and its captions.
        self._images: dict[str, tuple[int, int]] = {}
        self._captions: dict[str, dict[str, None]] = {}
        self._embeds: list[Tensor] = []
        self._model: nn.Module | None = None
        self._device = torch.device("cpu")

    def step(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Embed the images of a batch by a forward of `model`."""
        with torch.no_grad():
            embeds = self.encoder.encode(model, images=batch_images(batch))
        self._model, self._device = model, embeds.device
        self.num_skipped += self.skipped.record(batch)
        valid = batch["valid"].tolist() if "valid" in batch else [True] * len(embeds)
        rows: list[int] = []
        first = sum(map(len, self._embeds))
        for row, sample in enumerate(batch["sample_index"].tolist()):
            key = batch["image_keys"][row]
            if not valid[row]:
                continue
            if sample < self._images.get(key, (sample + 1, 0))[0]:
                self._images[key] = sample, first + len(rows)
                rows.append(row)
            self._captions.setdefault(key, {}).update(dict.fromkeys(batch["image_captions"][row]))
        # Without rows as well, for the width of an embedding.
        self._embeds.append(embeds[rows].cpu())

    def keeps_logits(self, compute_metrics: Any, description: str) -> bool:
        """Whether a trainer needs what `step` returns: never, since there are no logits."""
        if compute_metrics is not None:
            logger.warning_once(
                "compute_metrics is not called for datasets that are evaluated by retrieval, which have no logits."
            )
        return False

    def result(self, training_shares: Mapping[str, float] | None = None) -> RetrievalResult:
        """The result over all processes, which call this together; a ValueError if there were no rows."""
        images, captions, skipped = self._gathered()
        if not captions:
            raise ValueError(no_rows(skipped))
        texts = sorted({text for own in captions for text in own})
        place = {text: number for number, text in enumerate(texts)}
        pairs = torch.tensor([(image, place[text]) for image, own in enumerate(captions) for text in own])
        embeds = self._embedded(texts)
        warn_if_nan(bool(images.isnan().any() or embeds.isnan().any()))
        found = retrieval_hits(images, embeds, pairs, CUTOFFS), retrieval_hits(embeds, images, pairs.flip(1), CUTOFFS)
        recalls = {
            f"{way}_recall_at_{cutoff}": hits / count
            for way, counts, count in zip(
                ("image_to_text", "text_to_image"), found, (len(captions), len(texts)), strict=True
            )
            for cutoff, hits in zip(CUTOFFS, counts, strict=True)
        }
        return RetrievalResult(**recalls, images=len(captions), captions=len(texts), skipped=skipped)

    def _gathered(self) -> tuple[Tensor, list[list[str]], int]:
        """The embeddings of the distinct images of all processes, `(N, D)`, their captions, and the rows skipped."""
        if not self._embeds:
            raise ValueError(no_rows(0))
        parts = [(self._images, self._captions, self.num_skipped)]
        if world_size() > 1:
            everyone: list[Any] = [None] * world_size()
            dist.all_gather_object(everyone, parts[0])
            parts = everyone
        own = torch.cat(self._embeds).to(self._device)
        most = max(max((place for _, place in images.values()), default=-1) for images, _, _ in parts) + 1
        padded = own.new_zeros(most, own.shape[1])
        padded[: len(own)] = own
        gathered = gather_values(padded)
        # Of an image in several rows the embedding of the first is taken, whichever process has it.
        first: dict[str, tuple[int, int]] = {}
        texts: dict[str, dict[str, None]] = {}
        for number, (images, captions, _) in enumerate(parts):
            for key, (sample, row) in images.items():
                first[key] = min(first.get(key, (sample, number * most + row)), (sample, number * most + row))
                texts.setdefault(key, {}).update(captions[key])
        keys = sorted(first, key=lambda key: first[key])
        rows = torch.tensor([first[key][1] for key in keys], dtype=torch.long, device=gathered.device)
        return gathered[rows], [list(texts[key]) for key in keys], sum(skipped for _, _, skipped in parts)

    def _embedded(self, texts: list[str]) -> Tensor:
        """The embeddings of distinct texts, `(M, D)`; those that the text tower reads alike have the same."""
        assert self._model is not None
        model, distinct = self._model, dict[tuple[int, ...], int]()
        rows: list[int] = []
        chosen: list[str] = []
        for text, tokens in zip(texts, self.encoder.encode_texts.token_ids(texts), strict=True):
            rows.append(distinct.setdefault(tuple(tokens), len(distinct)))
            if len(distinct) > len(chosen):
                chosen.append(text)
        # Every process runs as many forwards as the others, because wrappers gather parameters in them.
        padding = chosen[:1] * (-len(chosen) % world_size())
        with evaluation_mode(model):
            embeds = embed_texts(lambda part: self.encoder.encode(model, texts=part), [*chosen, *padding])
        return embeds[rows]


def evaluate_retrieval(
    model: str | PathLike[str] | nn.Module,
    processor: Any,
    dataset: Any,
    *,
    image_column: str = "image",
    caption_column: str = CAPTION_COLUMN,
    batch_size: int = 64,
    num_workers: int = 0,
    dtype: torch.dtype | None = None,
    on_bad_image: str = RAISE,
    image_decoding: str = SCALED,
    image_cache: str | PathLike[str] | bool | None = None,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> RetrievalResult:
    """Measure how well a dual encoder finds the captions of images and the images of captions.

    An image may have several captions: in one row, as a list, or in several rows. A caption may belong to several
    images. `RetrievalResult` says how they count. In a process group, as a Trainer or `accelerate.PartialState()` sets
    it up, each process embeds and ranks part of the images and captions, and all of them return the result of the
    whole set. Memory grows with the embeddings, and not with the pairs of an image and a caption.

    Args:
        model: a dual encoder, a Hub id or a path.
        processor: its processor; None loads it from where the model is from.
        dataset: a `datasets` Dataset, or any dataset whose rows are mappings and can be read by index.
        image_column: column with the images.
        caption_column: column with the captions, strings or lists of them. What is too long for the text tower is
            truncated, with a warning.
        batch_size: images per forward.
        num_workers: processes that load images.
        dtype: autocast dtype, such as `torch.bfloat16`; None: the model's own.
        on_bad_image: what to do about a row whose image cannot be read: "raise" raises an error that names it; "skip"
            excludes it and its captions with a warning, and counts it in the result's `skipped`.
        image_decoding: "scaled" decodes an image at no more than the size that resizing it well takes; "full" decodes
            all its pixels.
        image_cache: "auto" or True, for `starft` under HF_HOME, or a folder: what the model gets of the images is kept
            there, and further evaluations read it. None keeps nothing.
        trust_remote_code: whether to run code that comes with a model whose classes transformers does not have.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if data or model do not fit or a row has no caption, before the first forward.
    """
    settings = EvaluationSettings(
        batch_size, num_workers, dtype, on_bad_image, image_decoding, image_cache, trust_remote_code, progress
    )
    settings.check(dataset)
    named = ColumnSettings(image_column, None, caption_column)
    columns = retrieval_columns(dataset, named, RETRIEVAL, what="dataset")
    assert columns is not None
    loaded, encoder = settings.load(model, processor)
    maker = RetrievalExampleMaker(columns, settings.preprocessor(encoder))
    return settings.evaluate(loaded, dataset, maker, RetrievalEvaluation(encoder))
