"""The run settings, which must be equal for a run to resume from a checkpoint of another, and their differences."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Image

from starft_hf.hub.record import RunRecord
from starft_hf.models.adapters import is_adapted
from starft_hf.training.configuration import StarFTConfig
from starft_hf.training.scopes import RUN


_SAMPLED_ROWS = 16


def run_settings(
    args: StarFTConfig, record: RunRecord, model: Any, examples: Any, passed: Mapping[str, Any]
) -> dict[str, Any]:
    """What has to be the same for a run to resume from a checkpoint of another, as values that JSON can hold.

    Args:
        args: the settings.
        record: the record of the run.
        model: the model that is trained.
        examples: the training examples.
        passed: what `passed_optimizers` says of the run.
    """
    config = {name: record.config[name] for name in args.settings_in(RUN)}
    # Any number of processes may share a batch, as long as it is the same batch.
    config["images_per_step"] = args.train_batch_size * args.world_size
    config["caption_templates"] = args.caption_templates
    # What "auto" stands for depends on the version.
    if record.regularizer is not None:
        config |= {"regularizer": record.regularizer, "reg_weight": record.reg_weight}
    if args.max_steps > 0:
        del config["num_train_epochs"]
    pool, start, reference = record.pool or {}, record.start["fingerprint"], record.reference["fingerprint"]
    settings = {
        **config,
        "spurious templates": pool.get("templates"),
        "class names": record.class_names,
        "model": start,
        "reference_model": None if reference == start else reference,
        "adapter": _adapter_of(model),
        **passed,
        "rows of the training set": record.data["rows"],
        "images, labels and captions of the training set": sample_of(examples),
        "version of transformers": record.versions["transformers"],
    }
    content: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return content


def differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """The differences between the run settings of two runs, as clauses."""
    version = "version of transformers"
    updated = before.get(version) != now.get(version)
    for name in sorted({*before, *now} - {version}):
        one, other = before.get(name), now.get(name)
        # A setting that only one of the two has was added by a version. Fingerprints of models depend on the version
        # as well.
        known = name in before and name in now and not (updated and name in ("model", "reference_model"))
        if known and one != other:
            yield f"{name} {_compared(one, other)}"


def _compared(one: Any, other: Any) -> str:
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return f"were {len(one)} and are {len(other)}"
        place = next(place for place, (left, right) in enumerate(zip(one, other, strict=True)) if left != right)
        return f"number {place + 1} was {one[place]!r} and is {other[place]!r}"
    if isinstance(one, dict) and isinstance(other, dict):
        name = next(name for name in sorted({*one, *other}) if one.get(name) != other.get(name))
        return f"had {name}={one.get(name)!r} and has {name}={other.get(name)!r}"
    return f"was {one!r} and is {other!r}"


def _adapter_of(model: Any) -> dict[str, Any] | None:
    if not is_adapted(model):
        return None
    config = next(iter(model.peft_config.values())).to_dict()
    # Sets have no order.
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    skipped = ("base_model_name_or_path", "inference_mode", "peft_version", "revision")
    return {name: value for name, value in plain.items() if name not in skipped}


def sample_of(examples: Any) -> list[Any] | None:
    """Some rows of a dataset, by their contents; None where reading a row may give something else every time."""
    dataset = getattr(examples, "dataset", None)
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom" or not len(dataset):
        return None
    columns = examples.columns
    # Images as they are stored, since other versions of libraries may decode them differently.
    if isinstance(dataset.features[columns.image], Image):
        dataset = dataset.cast_column(columns.image, Image(decode=False))
    rows = [dataset[place * (len(dataset) - 1) // (_SAMPLED_ROWS - 1)] for place in range(_SAMPLED_ROWS)]
    names = [name for name in (columns.label, columns.caption) if name is not None]
    return [[_image_key(row[columns.image]), *(row[name] for name in names)] for row in rows]


def _image_key(image: Any) -> str | None:
    content = image.get("bytes") if isinstance(image, dict) else None
    if content is None and isinstance(image, dict) and Path(str(image.get("path"))).is_file():
        content = Path(image["path"]).read_bytes()
    return None if content is None else hashlib.blake2b(content, digest_size=16).hexdigest()
