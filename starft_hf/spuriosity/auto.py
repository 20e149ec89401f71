"""`spuriosity="auto"`: the pool of a run, out of its own training set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers.utils import logging

from starft_hf.data.columns import ImageColumns
from starft_hf.models.encoder import DualEncoder
from starft_hf.reference.fingerprint import images_fingerprint, model_fingerprint, preprocessing_fingerprint
from starft_hf.spuriosity.discovery import Significance, check_labelled, discover, sample_rows
from starft_hf.spuriosity.pool import SpuriosityPool, as_pool
from starft_hf.spuriosity.reading import POOL_FILE
from starft_hf.utils.collectives import all_processes_agree, rank
from starft_hf.utils.hashing import digest


logger = logging.get_logger(__name__)

AUTO = "auto"

Spuriosity = SpuriosityPool | str | PathLike[str] | Sequence[str]


@dataclass(frozen=True)
class DiscoverySettings:
    """How a run discovers its pool.

    Attributes:
        pool: the candidates: a name, a path or a Hub repository.
        samples: training images to look at, drawn at random; of an iterable dataset the first ones.
        caption_templates: the plain captions, with `{}` for the class name.
        seed: of the sample and of the permutations.
        device: where to compute.
        keep_in: folder where the pool is kept for resumed runs; None keeps it nowhere.
        saves: whether this process writes it there.
        options: further ones of `discover`, such as the batch size.
    """

    pool: str
    samples: int
    caption_templates: Sequence[str]
    seed: int
    device: torch.device
    keep_in: Path
    saves: bool
    options: Mapping[str, Any] = field(default_factory=dict)


def is_auto(spuriosity: Spuriosity) -> bool:
    """Whether the pool is to be found in the training set."""
    return isinstance(spuriosity, str) and spuriosity == AUTO


def given_pool(spuriosity: Spuriosity, discovery_pool: str) -> SpuriosityPool:
    """The pool that a run is given; with "auto" the one it is to choose from."""
    return as_pool(discovery_pool if is_auto(spuriosity) else spuriosity)


def check_auto(spuriosity: Spuriosity, columns: ImageColumns) -> None:
    """Check that a training set allows discovery, where it is asked for.

    Raises:
        ValueError: if it has no labels.
    """
    if is_auto(spuriosity):
        check_labelled(columns, "train_dataset")


def pool_of_run(
    spuriosity: Spuriosity,
    given: SpuriosityPool | None,
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    columns: ImageColumns | None,
    settings: DiscoverySettings,
) -> SpuriosityPool | None:
    """The pool that a run trains with: the one it is given, or what discovery finds of it in the training set.

    All processes find the same. Where checkpoints are saved, so is the pool, and a resumed run takes it from there.

    Args:
        spuriosity: as it was passed to the trainer.
        given: the pool of `given_pool`, or None where the regularizer needs none.
        model: the model before training.
        encoder: its conventions.
        dataset: the training set, or None.
        columns: its columns.
        settings: of the discovery.
    """
    if given is None or columns is None or not is_auto(spuriosity):
        return given
    key = _key(model, encoder, dataset, columns, given, settings)
    file = settings.keep_in / POOL_FILE
    kept = _kept_pool(file, key)
    if all_processes_agree(kept is not None, settings.device):
        return kept
    pool = _discovered(given, model, encoder, dataset, columns, settings)
    pool.metadata["key"] = key
    if settings.saves:
        _keep(pool, file)
    return pool


def _discovered(
    given: SpuriosityPool,
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    columns: ImageColumns,
    settings: DiscoverySettings,
) -> SpuriosityPool:
    rows, indices = sample_rows(dataset, settings.samples, settings.seed)
    device = next(model.parameters()).device
    # Models in 4 or 8 bits are where they compute already, and refuse to be moved.
    if device != settings.device:
        model.to(settings.device)
    try:
        result = discover(
            model,
            encoder,
            rows,
            indices,
            columns,
            given,
            settings.caption_templates,
            Significance(seed=settings.seed),
            **settings.options,
        )
    finally:
        # Where FSDP will shard the model, it is not to be on the device as a whole.
        if device != settings.device:
            model.to(device)
    pool, why = (result.pool(), "") if result.found else (None, "nothing in the sample goes together with a label")
    if pool is not None and any(not pool.eligible(name) for name in columns.class_names or ()):
        pool, why = None, "what was found is restricted to some classes, and others would have no template"
    if rank() == 0 and pool is None:
        logger.warning(
            "spuriosity='auto' looked at %d images and trains with the whole pool %r: %s.",
            len(indices),
            given.name,
            why,
        )
    if rank() == 0 and pool is not None:
        logger.warning(
            "spuriosity='auto' looked at %d images and trains with %d templates of the pool %r: %s",
            len(indices),
            len(pool),
            given.name,
            "; ".join(map(str, [row for row in result.table if row.found][:10])),
        )
    # A pool of its own, because what is given may be the user's.
    return SpuriosityPool.from_dict((pool or given).to_dict())


def _key(
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    columns: ImageColumns,
    given: SpuriosityPool,
    settings: DiscoverySettings,
) -> str | None:
    """A key for all that discovery depends on, or None where the data set does not say whether it has changed."""
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return None
    drawn = [settings.samples, settings.seed, list(settings.caption_templates)]
    return digest(
        [
            model_fingerprint(model),
            preprocessing_fingerprint(encoder.image_processor),
            images_fingerprint(dataset, columns.image, [columns.label] if columns.label else []),
            given.to_dict(),
            [*drawn, columns.class_names, columns.label],
        ]
    )


def _kept_pool(file: Path, key: str | None) -> SpuriosityPool | None:
    """The pool in a file, if it was found under the same key."""
    if key is None or not file.is_file():
        return None
    try:
        pool = SpuriosityPool.load(file)
    except ValueError:
        return None
    return pool if pool.metadata.get("key") == key else None


def _keep(pool: SpuriosityPool, file: Path) -> None:
    try:
        ours = not file.exists() or "key" in SpuriosityPool.load(file).metadata
    except ValueError:
        ours = False
    if ours:
        pool.save(file)
    else:
        logger.warning("%s is not overwritten, for it was not found by this trainer; the pool is not kept.", file)
