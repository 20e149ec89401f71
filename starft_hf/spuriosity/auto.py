"""`spuriosity="auto"`: the pool of a run, discovered in its own training set."""

from collections.abc import Sequence
from dataclasses import dataclass
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
from starft_hf.spuriosity.discovery import check_labeled, discover
from starft_hf.spuriosity.pool import SpuriosityPool, as_pool
from starft_hf.spuriosity.reading import POOL_FILE
from starft_hf.spuriosity.settings import SearchSettings
from starft_hf.utils.collectives import all_processes_agree, rank
from starft_hf.utils.hashing import digest


logger = logging.get_logger(__name__)

AUTO = "auto"

Spuriosity = SpuriosityPool | str | PathLike[str] | Sequence[str]


@dataclass(frozen=True)
class DiscoverySettings:
    """How a run discovers its pool.

    Attributes:
        search: how the training set is searched.
        device: where to compute.
        folder: where the pool is saved for resumed runs.
        saves: whether this process saves it.
    """

    search: SearchSettings
    device: torch.device
    folder: Path
    saves: bool


def is_auto(spuriosity: Spuriosity) -> bool:
    """Whether the pool is to be discovered in the training set."""
    return isinstance(spuriosity, str) and spuriosity == AUTO


def given_pool(spuriosity: Spuriosity, discovery_pool: str) -> SpuriosityPool:
    """The pool passed to a run; for "auto", the pool of candidates."""
    return as_pool(discovery_pool if is_auto(spuriosity) else spuriosity)


def check_auto(spuriosity: Spuriosity, columns: ImageColumns) -> None:
    """Check that a training set allows discovery, if "auto" is requested.

    Raises:
        ValueError: if it has no labels.
    """
    if is_auto(spuriosity):
        check_labeled(columns, "train_dataset")


def pool_of_run(
    spuriosity: Spuriosity,
    given: SpuriosityPool | None,
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    columns: ImageColumns | None,
    settings: DiscoverySettings,
) -> SpuriosityPool | None:
    """The pool that a run trains with: the given one, or what discovery finds of it in the training set.

    All processes get the same. If checkpoints are saved, so is the pool, and a resumed run loads it.

    Args:
        spuriosity: as it was passed to the trainer.
        given: the pool of `given_pool`, or None if the regularizer needs none.
        model: the model before training.
        encoder: its spec.
        dataset: the training set, or None.
        columns: its columns.
        settings: of the discovery.
    """
    if given is None or columns is None or not is_auto(spuriosity):
        return given
    file = settings.folder / POOL_FILE
    key = _key(model, encoder, dataset, columns, given, settings.search)
    saved = _saved_pool(file, key)
    if all_processes_agree(saved is not None, settings.device):
        return saved
    pool = _discovered(given, model, encoder, dataset, columns, settings)
    pool.metadata["key"] = key
    if settings.saves:
        _save(pool, file)
    return pool


def _discovered(
    given: SpuriosityPool,
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    columns: ImageColumns,
    settings: DiscoverySettings,
) -> SpuriosityPool:
    device = next(model.parameters()).device
    # Models in 4 or 8 bits are on their device already, and cannot be moved.
    if device != settings.device:
        model.to(settings.device)
    try:
        result = discover(model, encoder, dataset, columns, given, settings.search)
    finally:
        # A model that FSDP will shard must not stay on the device as a whole.
        if device != settings.device:
            model.to(device)
    found, whole = result.pool() if result.found else None, f"the whole pool {given.name!r}"
    if found is None:
        outcome = f"{whole}: nothing in the sample is correlated with a label"
    elif any(not found.eligible(name) for name in columns.class_names or ()):
        found, outcome = None, f"{whole}: what was found is restricted, and others would have no template"
    else:
        rows = [str(row) for row in result.table if row.found]
        outcome = f"{len(found)} templates of the pool {given.name!r}: {'; '.join(rows[:10])}"
    if rank() == 0:
        logger.warning("spuriosity='auto' searched %d images and trains with %s.", len(result.labels), outcome)
    # A copy, because the given pool may be the user's.
    return SpuriosityPool.from_dict((found or given).to_dict())


def _key(
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    columns: ImageColumns,
    given: SpuriosityPool,
    search: SearchSettings,
) -> str | None:
    """A key for everything that discovery depends on, or None if changes of the dataset cannot be detected."""
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return None
    return digest(
        [
            model_fingerprint(model),
            preprocessing_fingerprint(encoder.image_processor),
            images_fingerprint(dataset, columns.image, [columns.label] if columns.label else []),
            given.to_dict(),
            [search.max_samples, search.seed, list(search.caption_templates)],
            [columns.class_names, columns.label],
        ]
    )


def _saved_pool(file: Path, key: str | None) -> SpuriosityPool | None:
    """The pool in a file, if it was discovered under the same key."""
    if key is None or not file.is_file():
        return None
    try:
        pool = SpuriosityPool.load(file)
    except ValueError:
        return None
    return pool if pool.metadata.get("key") == key else None


def _save(pool: SpuriosityPool, file: Path) -> None:
    try:
        ours = not file.exists() or "key" in SpuriosityPool.load(file).metadata
    except ValueError:
        ours = False
    if ours:
        pool.save(file)
    else:
        logger.warning("%s is not overwritten, because it is not a discovered pool; the pool is not saved.", file)
