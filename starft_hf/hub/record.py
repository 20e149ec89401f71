"""`starft.json`: what someone needs to repeat a run, saved beside its weights.

It is published with them, so nothing in it tells of the machine or the person: no path, no token, no name.
"""

import dataclasses
import importlib.metadata
import json
import os
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import TrainingArguments

from starft_hf.models.loading import cached_commit
from starft_hf.utils.files import read_text, write_text_atomically


RECORD_FILE = "starft.json"
_FORMAT = 1

# Settings of `TrainingArguments` that change what comes out. Others are about the machine, or say where things go.
_TRAINING_SETTINGS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "data_seed",
    "dataloader_drop_last",
    "fp16",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "per_device_train_batch_size",
    "seed",
    "warmup_steps",
    "weight_decay",
)
# Of StarFT's own, what does not change it.
_NOT_RECORDED = ("reference_cache_dir", "card_template", "discovery_pool", "ignore_mismatched_settings")

# A path from a root, a home or the current folder; not an address on the web, nor "owner/name".
_PATH = re.compile(r"(?<![\w:/\\.~])(?:file://)?(?:~[\w.-]*|\.{1,2}|[A-Za-z]:)?(?:[\\/][^\s'\"\\/,;]+)+[\\/]?")

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)

_PACKAGES = ("starft_hf", "torch", "transformers", "accelerate", "datasets", "peft")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run was made of. Everything can be held by JSON.

    Attributes:
        config: settings by name: those of StarFT and those of `TrainingArguments` that change the outcome.
        pool: name, source and templates of the spuriosity pool; None where no regularizer takes one.
        class_names: of the training set, in label order; None without labels.
        start: "id", "revision" and "fingerprint" (of the weights) of the model that training started from; None where
            unknown.
        reference: the same of the frozen reference, which is that model unless another one was given.
        data: "fingerprint" (of `datasets`, of the columns that are used) and "rows" of the training set; None where
            unknown.
        processes: how many shared the batches.
        versions: of the libraries.
        reg_weight: of the regularizer at the start of the run, a number where the settings say "auto"; None without
            one.
        sample_weights: what `reweight="attribution"` found, as `WeightDiagnostics` names it; None without it, or
            before it.
    """

    config: dict[str, Any]
    pool: dict[str, Any] | None
    class_names: tuple[str, ...] | None
    start: dict[str, Any]
    reference: dict[str, Any]
    data: dict[str, Any]
    processes: int
    versions: dict[str, str]
    reg_weight: float | None = None
    sample_weights: dict[str, Any] | None = None

    @property
    def templates(self) -> tuple[str, ...]:
        """The spurious templates, if any."""
        entries = self.pool["templates"] if self.pool else ()
        return tuple(_template_of(entry) for entry in entries)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write `starft.json` into `folder`, at once or not at all."""
        content = {"format": _FORMAT, **dataclasses.asdict(self)}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_text_atomically(Path(folder) / RECORD_FILE, text)

    @classmethod
    def load(cls, source: str | PathLike[str], revision: str | None = None) -> "RunRecord":
        """The record in a folder or a repository of the Hub.

        Raises:
            FileNotFoundError: if there is none in the folder.
            ValueError: if it cannot be read, or is of a later version.
        """
        path = Path(source) / RECORD_FILE
        if not path.parent.is_dir():
            path = Path(hf_hub_download(str(source), RECORD_FILE, revision=revision))
        elif not path.is_file():
            raise FileNotFoundError(f"{str(source)!r} has no {RECORD_FILE}; StarFTTrainer writes one when it saves")
        try:
            content = json.loads(read_text(path))
            version = content.pop("format")
            names = content.pop("class_names")
            record = cls(**content, class_names=None if names is None else tuple(names))
            _check_types(record)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{RECORD_FILE} of {str(source)!r} cannot be read: {error!r}") from error
        if version != _FORMAT:
            raise ValueError(
                f"{RECORD_FILE} of {str(source)!r} has format {version!r}, this version reads {_FORMAT}; update "
                "starft_hf"
            )
        return record


def _check_types(record: RunRecord) -> None:
    kinds: dict[str, type | tuple[type, ...]] = {
        "config": dict,
        "pool": (dict, type(None)),
        "class_names": (tuple, type(None)),
        "start": dict,
        "reference": dict,
        "data": dict,
        "processes": int,
        "versions": dict,
        "reg_weight": (int, float, type(None)),
        "sample_weights": (dict, type(None)),
    }
    for name, kind in kinds.items():
        if not isinstance(getattr(record, name), kind):
            raise TypeError(f"{name} is a {type(getattr(record, name)).__name__}")
    if not all(isinstance(name, str) for name in record.class_names or ()):
        raise TypeError("class_names has something else than names")
    entries = record.pool.get("templates") if record.pool is not None else []
    if not isinstance(entries, list) or not all(isinstance(_template_of(entry), str) for entry in entries):
        raise TypeError("the templates of the pool are no list of templates")


def _template_of(entry: Any) -> Any:
    return entry.get("template") if isinstance(entry, dict) else entry


def recorded_settings(kind: type[TrainingArguments]) -> tuple[str, ...]:
    """The names of the settings that a record keeps.

    A stranger's record is asked for these alone: others say where a run writes, what it publishes and under whose
    name, and what it loads.
    """
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [field.name for field in dataclasses.fields(kind) if field.name not in known and field.init]
    return tuple(name for name in (*own, *_TRAINING_SETTINGS) if name not in _NOT_RECORDED)


def settings_of(args: TrainingArguments) -> dict[str, Any]:
    """The settings that a record keeps, by name."""
    values = {name: getattr(args, name) for name in recorded_settings(type(args))}
    # Enumerations by their values.
    return {name: getattr(value, "value", value) for name, value in sorted(values.items())}


def public_id(name: str | None) -> str | None:
    """`name` if it can be the id of a repository on the Hub; None for paths, which mean nothing elsewhere."""
    if not name or os.path.isabs(name) or Path(name).expanduser().exists():
        return None
    return name if _REPOSITORY.fullmatch(name) else None


def make_record(
    args: TrainingArguments,
    pool: Any,
    class_names: Sequence[str] | None,
    start: dict[str, Any],
    dataset: Any,
    alignment: Any,
) -> RunRecord:
    """The record of a run.

    Args:
        args: its settings.
        pool: its spuriosity pool, or None.
        class_names: of the training set, or None.
        start: the `identity_of` the model that training started from.
        dataset: the training set as it was given, or None.
        alignment: the `RunSetup` of the run.
    """
    weights = alignment.sample_weights
    diagnostics = None if weights is None else weights.diagnostics
    rows = len(dataset) if dataset is not None and hasattr(dataset, "__len__") else None
    return RunRecord(
        config=settings_of(args),
        pool=None if pool is None else _pool_of(pool),
        class_names=None if class_names is None else tuple(class_names),
        start=start,
        reference=start if alignment.reference_source is None else alignment.reference_source,
        data={"fingerprint": getattr(dataset, "_fingerprint", None), "rows": rows},
        processes=args.world_size,
        versions={package: importlib.metadata.version(package) for package in _PACKAGES},
        reg_weight=None if alignment.reference is None else alignment.reg_weight,
        sample_weights=None if diagnostics is None else dataclasses.asdict(diagnostics),
    )


def identity_of(model: Any, fingerprint: str | None) -> dict[str, Any]:
    """Which model this is: its id and commit on the Hub, where it is from there, and the digest of its weights.

    Args:
        model: the dual encoder; its configuration says where it is from.
        fingerprint: of its weights, or None.
    """
    config = getattr(model, "config", None)
    name = public_id(getattr(config, "_name_or_path", None))
    # A model that was loaded elsewhere may be of any revision.
    revision = getattr(config, "_commit_hash", None) or (name and cached_commit(name, unambiguous=True))
    return {"id": name, "revision": revision, "fingerprint": fingerprint}


def _pool_of(pool: Any) -> dict[str, Any]:
    """The pool without its metadata, which may tell of a machine, and without the version, which stands elsewhere."""
    content = {key: value for key, value in pool.to_dict().items() if key not in ("metadata", "starft_hf_version")}
    return {**content, **{key: _name(content.get(key)) for key in ("name", "source", "description") if key in content}}


def _name(text: str | None) -> str | None:
    """`text` with the last parts of paths in place of the paths, which would tell of a machine and a person."""
    if text and (os.path.isabs(text) or PureWindowsPath(text).is_absolute()):
        return PureWindowsPath(text).name
    return _PATH.sub(lambda match: PureWindowsPath(match.group()).name, text) if text else text
