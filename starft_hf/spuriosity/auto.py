"""`spuriosity="auto"`: the pool of a run, discovered in its own training set."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from starft_hf.data.columns import ImageColumns
from starft_hf.data.fingerprint import images_fingerprint, preprocessing_fingerprint
from starft_hf.data.source import is_fingerprinted
from starft_hf.models.encoder import DualEncoder
from starft_hf.reference.fingerprint import model_fingerprint
from starft_hf.spuriosity.discovery import check_labeled, discover, unknown_templates
from starft_hf.spuriosity.pool import SpuriosityPool, as_pool, without_places
from starft_hf.spuriosity.reading import POOL_FILE
from starft_hf.spuriosity.result import DiscoveryResult
from starft_hf.spuriosity.settings import SearchSettings
from starft_hf.utils.collectives import all_processes_agree, rank
from starft_hf.utils.hashing import digest


logger = logging.get_logger(__name__)

Spuriosity = SpuriosityPool | str | PathLike[str] | Sequence[str]


@dataclass(frozen=True)
class DiscoverySettings:
    """How a run discovers its pool."""

    search: SearchSettings
    device: torch.device
    # Where the pool is saved for resumed runs, and whether this process saves it.
    folder: Path
    saves: bool


def is_auto(spuriosity: Spuriosity) -> bool:
    """Whether the pool is to be discovered in the training set."""
    return isinstance(spuriosity, str) and spuriosity == "auto"


def given_pool(spuriosity: Spuriosity, discovery_pool: str) -> SpuriosityPool:
    """The pool passed to a run; for "auto", the pool of candidates."""
    return as_pool(discovery_pool if is_auto(spuriosity) else spuriosity)


def check_auto(spuriosity: Spuriosity, columns: ImageColumns) -> None:
    """Check that a training set has labels, if "auto" is requested."""
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
    """The pool that a run trains with: that of `given_pool`, or what discovery finds of it in the training set.

    All processes get the same. If checkpoints are saved, so is the pool, and a resumed run loads it.
    """
    if given is None or columns is None or not is_auto(spuriosity):
        if given is not None:
            unknown_templates(given, encoder)
        return given
    file = settings.folder / POOL_FILE
    key, search = None, settings.search
    # Changes of other datasets cannot be detected.
    if is_fingerprinted(dataset):
        key = digest(
            [
                model_fingerprint(model),
                preprocessing_fingerprint(encoder.image_processor, search.image_decoding),
                images_fingerprint(dataset, columns.image, [columns.label] if columns.label else []),
                given.to_dict(),
                [search.max_samples, search.seed, list(search.caption_templates)],
                # Images that are kept for random crops are resized twice.
                search.image_cache and search.image_cache.crop_scale,
                [columns.class_names, columns.label],
            ]
        )
    saved = None
    with suppress(FileNotFoundError, ValueError):
        saved = SpuriosityPool.load(file)
    is_same = key is not None and saved is not None and saved.metadata.get("key") == key
    if all_processes_agree(is_same, settings.device):
        return saved
    device = next(model.parameters()).device
    # Models in 4 or 8 bits are on their device already, and cannot be moved.
    if device != settings.device:
        model.to(settings.device)
    try:
        result = discover(model, encoder, dataset, columns, given, search)
    finally:
        # A model that FSDP will shard must not stay on the device as a whole.
        if device != settings.device:
            model.to(device)
    pool = _chosen(result)
    pool.metadata["key"] = key
    if settings.saves and (not file.exists() or (saved is not None and "key" in saved.metadata)):
        pool.save(file)
    elif settings.saves:
        logger.warning("%s is not overwritten, because it is not a discovered pool; the pool is not saved.", file)
    return pool


def _chosen(result: DiscoveryResult) -> SpuriosityPool:
    """What was found, if it has a template for every class, or a copy of all candidates that the model understands."""
    pool, found = result.candidates, result.pool() if result.found else None
    outcome = f"all {len(pool)} candidates of the pool {pool.name!r}: nothing in the sample is correlated with a label"
    if found is not None and all(map(found.eligible, result.class_names)):
        rows = [str(row) for row in result.table if row.found]
        pool, outcome = found, f"{len(found)} templates of the pool {pool.name!r}: {'; '.join(rows[:10])}"
    elif found is not None:
        why = "what was found is restricted to some classes, and the others would have no template"
        outcome = f"all {len(pool)} candidates of the pool {pool.name!r}: {why}"
    if rank() == 0:
        logger.warning("spuriosity='auto' searched %d images and trains with %s.", len(result.labels), outcome)
    # It is saved with the run, and published with it.
    return SpuriosityPool.from_dict(without_places(pool.to_dict()))
