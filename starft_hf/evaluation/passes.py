"""One pass over an evaluation set without a trainer: how it is read and computed, whatever is measured."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol, TypeVar

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from starft_hf.data.collator import StarFTCollator
from starft_hf.data.decoding import check_on_bad_image
from starft_hf.data.examples import ImageExampleMaker, IndexedExamples
from starft_hf.data.image_cache import ImageCacheSettings, given_image_cache
from starft_hf.data.images import ImagePreprocessor, check_image_decoding
from starft_hf.data.source import is_iterable
from starft_hf.models.adapters import base_model_of
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.loading import load_model, load_processor
from starft_hf.models.modes import evaluation_mode
from starft_hf.utils.collectives import NO_SAMPLE, shard_indices, world_size


ResultT = TypeVar("ResultT", covariant=True)


class Evaluation(Protocol[ResultT]):
    """What is measured in a pass."""

    encoder: DualEncoder

    def step(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """Measure a batch."""

    def result(self, training_shares: Mapping[str, float] | None = None) -> ResultT:
        """The result over all processes."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How images are read and computed; the attributes are arguments of `evaluate_zero_shot`, which explains them."""

    batch_size: int
    num_workers: int
    dtype: torch.dtype | None
    on_bad_image: str
    image_decoding: str
    image_cache: str | PathLike[str] | bool | None
    trust_remote_code: bool
    progress: bool

    def check(self, dataset: Any) -> None:
        """Raise ValueError if a setting is none of its choices, or `dataset` cannot be evaluated."""
        check_on_bad_image(self.on_bad_image)
        check_image_decoding(self.image_decoding)
        if self.dtype not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"dtype is {self.dtype!r}; pass torch.bfloat16, torch.float16 or None, for the model's own"
            )
        if isinstance(dataset, Mapping):
            raise ValueError(f"dataset is a dictionary with {sorted(dataset)}; pass one of its datasets")
        if is_iterable(dataset):
            raise ValueError(
                "dataset is an iterable dataset, which cannot be split among processes; pass one that can be read by "
                "index"
            )
        self._cache(dataset)

    def load(self, model: str | PathLike[str] | nn.Module, processor: Any) -> tuple[nn.Module, DualEncoder]:
        """The model and its spec, with the processor that is given or that comes with it."""
        model = load_model(model, trust_remote_code=self.trust_remote_code)
        processor = load_processor(base_model_of(model), processor, trust_remote_code=self.trust_remote_code)
        return model, DualEncoder.of(model, processor)

    def preprocessor(self, encoder: DualEncoder) -> ImagePreprocessor:
        """What prepares the images."""
        return ImagePreprocessor(encoder.image_processor, decoding=self.image_decoding)

    def evaluate(
        self,
        model: nn.Module,
        dataset: Any,
        maker: ImageExampleMaker,
        evaluation: Evaluation[ResultT],
        training_shares: Mapping[str, float] | None = None,
    ) -> ResultT:
        """Measure the examples that `maker` makes of the rows of `dataset`, of which each process has a share."""
        device = next(model.parameters()).device
        examples = IndexedExamples(dataset, maker, self.on_bad_image, self._cache(dataset))
        examples.prepare(device)
        # Every process runs as many forwards as the others, because wrappers gather parameters in them.
        examples.padded = True
        share = list(shard_indices(len(examples)))
        mine = Subset(examples, share + [NO_SAMPLE] * (-(-len(examples) // world_size()) - len(share)))
        # A loader draws a seed for its workers; from a generator of its own, it leaves the global one alone.
        loader = DataLoader(
            mine,
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=StarFTCollator(evaluation.encoder.encode_texts),
            generator=torch.Generator(),
        )
        autocast = nullcontext() if self.dtype is None else torch.autocast(device.type, self.dtype)
        with evaluation_mode(model), autocast:
            for batch in tqdm(loader, desc="Evaluating", unit=" batches", disable=not self.progress):
                evaluation.step(model, send_to_device(batch, device))
            return evaluation.result(training_shares)

    def _cache(self, dataset: Any) -> ImageCacheSettings | None:
        return given_image_cache(self.image_cache, dataset, self.num_workers, self.progress)
