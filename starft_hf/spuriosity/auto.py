"""`spuriosity="auto"`: the pool of a run, out of its own training set."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers.utils import logging

from starft_hf.data.columns import ImageColumns
from starft_hf.models.encoder import DualEncoder
from starft_hf.reference.fingerprint import digest, images_fingerprint, model_fingerprint, preprocessing_fingerprint
from starft_hf.spuriosity.discovery import Significance, check_labelled, discover, sample_rows
from starft_hf.spuriosity.pool import SpuriosityPool, as_pool
from starft_hf.spuriosity.reading import POOL_FILE
from starft_hf.training.configuration import StarFTConfig
from starft_hf.utils.collectives import all_agree, rank


logger = logging.get_logger(__name__)

AUTO = "auto"

Spuriosity = SpuriosityPool | str | PathLike[str] | Sequence[str]


def is_auto(spuriosity: Spuriosity) -> bool:
    """Whether the pool is to be found in the training set."""
    return isinstance(spuriosity, str) and spuriosity == AUTO


def given_pool(spuriosity: Spuriosity, config: StarFTConfig) -> SpuriosityPool:
    """The pool that a run is given; with "auto" the one it is to choose from."""
    return as_pool(config.discovery_pool if is_auto(spuriosity) else spuriosity)


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
    config: StarFTConfig,
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
        config: the settings.
    """
    if given is None or columns is None or not is_auto(spuriosity):
        return given
    key = _key(model, encoder, dataset, columns, given, config)
    file = Path(config.output_dir) / POOL_FILE
    kept = _kept_pool(file, key)
    if all_agree(kept is not None, config.device):
        return kept
    pool = _discovered(given, model, encoder, dataset, columns, config)
    pool.metadata["key"] = key
    if config.should_save and config.save_strategy != "no":
        _keep(pool, file)
    return pool


def _discovered(
    given: SpuriosityPool,
    model: nn.Module,
    encoder: DualEncoder,
    dataset: Any,
    columns: ImageColumns,
    config: StarFTConfig,
) -> SpuriosityPool:
    rows, indices = sample_rows(dataset, config.discovery_samples, config.seed)
    device = next(model.parameters()).device
    # Models in 4 or 8 bits are where they compute already, and refuse to be moved.
    if device != config.device:
        model.to(config.device)
    try:
        result = discover(
            model,
            encoder,
            rows,
            indices,
            columns,
            given,
            config.caption_templates,
            Significance(seed=config.seed),
            batch_size=config.per_device_eval_batch_size,
            num_workers=config.dataloader_num_workers,
            on_bad_image=config.on_bad_image,
            progress=not config.disable_tqdm,
        )
    finally:
        # Where FSDP will shard the model, it is not to be on the device as a whole.
        if device != config.device:
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
    config: StarFTConfig,
) -> str | None:
    """A key for all that discovery depends on, or None where the data set does not say whether it has changed."""
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return None
    settings = [config.discovery_samples, config.seed, config.caption_templates, columns.class_names, columns.label]
    return digest(
        [
            model_fingerprint(model),
            preprocessing_fingerprint(encoder.image_processor),
            images_fingerprint(dataset, columns.image, [columns.label] if columns.label else []),
            given.to_dict(),
            settings,
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
