"""`starft.json`: what is needed to repeat a run, saved beside its weights.

It is published with them, so it has nothing about the machine or the person: no path, no token, no name.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import NoneType
from typing import Any

from huggingface_hub import hf_hub_download

from starft_hf.models.loading import cached_commit
from starft_hf.spuriosity.pool import without_places
from starft_hf.utils.files import expanded, local_or_hub, write_text_atomically
from starft_hf.utils.untrusted import read_json
from starft_hf.utils.versions import versions_of


RECORD_FILE = "starft.json"
# The base loss of runs on images of any number of classes.
MULTI_LABEL = "multi_label"
DEFAULT_PROMPT = "a photo of a {}."
_FORMAT = 1

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)

_KINDS: dict[str, Any] = {
    **dict.fromkeys(("config", "start", "reference", "data", "versions"), dict),
    "pool": (dict, NoneType),
    "class_names": (tuple, NoneType),
    "processes": int,
    "regularizer": (str, NoneType),
    "reg_weight": (int, float, NoneType),
    "sample_weights": (dict, NoneType),
    "trained": (dict, NoneType),
    "alpha": (int, float, NoneType),
    "repair": (dict, NoneType),
    "audit": (dict, NoneType),
    "combined": bool,
}

_PACKAGES = ("starft_hf", "torch", "transformers", "accelerate", "datasets", "peft")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What is needed to repeat a run, as values that JSON can hold.

    Attributes:
        config: settings by name: those of StarFT and those of `TrainingArguments` that change the outcome.
        pool: name, source and templates of the spuriosity pool; None where no regularizer uses one.
        class_names: of the training set, in label order; None without labels.
        start, reference: the `model_source` of the model that training started from, and of the frozen reference.
        data: "fingerprint" (of the used columns, by `datasets`) and "rows" of the training set; None where unknown.
            "drawn_from" is how many rows it had before `shots` or `max_train_samples`, if not all of them were used;
            "held_out" is the share of the data that `starft train` has held out of it, if they had no splits.
        processes, versions: how many processes shared the batches, and versions of libraries by name.
        regularizer, reg_weight: its name, and its weight at the start of the run, also where the settings are "auto";
            None without a regularizer.
        sample_weights: the `WeightDiagnostics` of `reweight="attribution"`, once it has run.
        trained: what of the model was trained: the number of "parameters", the parts that were "frozen", and the
            "learning_rates" at the start of the run, each with its parts and their number of parameters.
        alpha: weight of the fine-tuned model in the saved one, if `tune` has interpolated it with the start; None for
            the model as trained.
        repair: what `repair` has done to the weights after the run: "method", "settings", "select_by", the number of
            "images" of the validation set, the accuracies on it, and the "gain" with its "standard_error", corrected
            for the choice; None if nothing was tried.
        audit: what an audit of these weights has found: its "score", the number of "images", the "worst_group" and
            "average", and "sentences"; None if there was none.
        combined: whether the weights were made of those of several models. There is no run to repeat then, and only
            what classifying images needs is recorded.
    """

    config: dict[str, Any]
    pool: dict[str, Any] | None
    class_names: tuple[str, ...] | None
    start: dict[str, Any]
    reference: dict[str, Any]
    data: dict[str, Any]
    processes: int
    versions: dict[str, str]
    regularizer: str | None = None
    reg_weight: float | None = None
    sample_weights: dict[str, Any] | None = None
    trained: dict[str, Any] | None = None
    alpha: float | None = None
    repair: dict[str, Any] | None = None
    audit: dict[str, Any] | None = None
    combined: bool = False

    @property
    def templates(self) -> tuple[str, ...]:
        """The spurious templates, if any."""
        return tuple(_template_of(entry) for entry in self.pool["templates"]) if self.pool else ()

    @property
    def multi_label(self) -> bool:
        """Whether images may have several classes."""
        return self.config.get("base_loss") == MULTI_LABEL

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the zero-shot classifier that evaluations used."""
        given = self.config.get("eval_templates") or self.config.get("caption_template") or DEFAULT_PROMPT
        return (given,) if isinstance(given, str) else tuple(given)

    def save(self, folder: str | PathLike[str]) -> None:
        """Write `starft.json` into `folder`, atomically."""
        content = {"format": _FORMAT, **dataclasses.asdict(self)}
        write_text_atomically(Path(folder) / RECORD_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, source: str | PathLike[str], revision: str | None = None) -> "RunRecord":
        """The record in a folder or a Hub repository.

        Raises:
            FileNotFoundError: if there is none in the folder.
            ValueError: if it cannot be read, or is of a later version.
        """
        path = Path(local_or_hub(source, "source")) / RECORD_FILE
        if not path.parent.is_dir():
            path = Path(hf_hub_download(str(source), RECORD_FILE, revision=revision))
        elif not path.is_file():
            raise FileNotFoundError(f"{str(source)!r} has no {RECORD_FILE}; StarFTTrainer writes one when it saves")
        try:
            content = read_json(path)
            if (version := content.pop("format")) != _FORMAT:
                raise ValueError(f"it has format {version!r}, this version reads {_FORMAT}; update starft_hf")
            names = content.pop("class_names")
            record = cls(**content, class_names=None if names is None else tuple(names))
            _check_types(record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{RECORD_FILE} of {str(source)!r} cannot be read: {error!r}") from error
        return record


def _check_types(record: RunRecord) -> None:
    for name, kind in _KINDS.items():
        if not isinstance(getattr(record, name), kind):
            raise TypeError(f"{name} is a {type(getattr(record, name)).__name__}")
    if not isinstance(record.data.get("held_out", 0.0), float):
        raise TypeError("held_out of data is not a number")
    if not all(isinstance(name, str) for name in record.class_names or ()):
        raise TypeError("class_names has entries that are not names")
    entries = record.pool.get("templates") if record.pool is not None else []
    if not isinstance(entries, list) or not all(isinstance(_template_of(entry), str) for entry in entries):
        raise TypeError("the templates of the pool are not a list of templates")


def _template_of(entry: Any) -> Any:
    return entry.get("template") if isinstance(entry, dict) else entry


def public_id(name: str | None) -> str | None:
    """`name` if it can be the id of a repository on the Hub; None for paths, which mean nothing elsewhere."""
    if not name or os.path.isabs(name) or expanded(name).exists():
        return None
    return name if _REPOSITORY.fullmatch(name) else None


def make_record(
    settings: Mapping[str, Any],
    pool: Any,
    dataset: Any,
    drawn_from: int | None = None,
    held_out: float | None = None,
    **known: Any,
) -> RunRecord:
    """The record of a run on `dataset`; `known` are the attributes of `RunRecord` that are not derived here."""
    rows = len(dataset) if dataset is not None and hasattr(dataset, "__len__") else None
    data = {"fingerprint": getattr(dataset, "_fingerprint", None), "rows": rows}
    also = {"drawn_from": drawn_from, "held_out": held_out}
    return RunRecord(
        config=dict(settings),
        pool=None if pool is None else _pool_of(pool),
        data=data | {name: value for name, value in also.items() if value is not None},
        versions=versions_of(_PACKAGES),
        **known,
    )


def model_source(model: Any, fingerprint: str | None) -> dict[str, Any]:
    """Where a model is from: its "id" and "revision" (commit) on the Hub, and the "fingerprint" of its weights.

    The first two are None for a model that is not from the Hub.
    """
    config = getattr(model, "config", None)
    name, commit = public_id(getattr(config, "_name_or_path", None)), getattr(config, "_commit_hash", None)
    if name is not None and commit is None and cached_commit(name) is None:
        # A relative path, of a folder that this process has left.
        name = None
    # A model that was loaded elsewhere may be of any revision.
    revision = commit or (name and cached_commit(name, unambiguous=True))
    return {"id": name, "revision": revision, "fingerprint": fingerprint}


def _pool_of(pool: Any) -> dict[str, Any]:
    """The pool without its metadata, which may describe a machine, and its version, which is recorded elsewhere."""
    content = {key: value for key, value in pool.to_dict().items() if key not in ("metadata", "starft_hf_version")}
    return without_places(content)
