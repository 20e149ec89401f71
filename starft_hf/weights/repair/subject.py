"""What is repaired: a fine-tuned model, how it classifies, the model it started from and the pool of its run."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from torch import nn
from transformers.utils import logging

from starft_hf.data.captions import check_caption_templates, check_class_prompts
from starft_hf.data.columns import ColumnSettings, ImageColumns, resolve_evaluation_columns
from starft_hf.data.embedding import check_finite
from starft_hf.data.labels import class_feature
from starft_hf.hub.classifier import base_of, load, local_folder
from starft_hf.hub.record import DEFAULT_PROMPT, RECORD_FILE, RunRecord
from starft_hf.models.adapters import check_adapters, is_adapted, merged_copy
from starft_hf.models.encoder import DualEncoder, logit_scale_of
from starft_hf.models.heads import HEAD_FILE, HEAD_NAME, load_head
from starft_hf.models.loading import load_model, load_processor
from starft_hf.models.precision import exact_copy
from starft_hf.spuriosity.auto import Spuriosity
from starft_hf.spuriosity.pool import SpuriosityPool, as_pool
from starft_hf.weights.interpolation import check_same_architecture


logger = logging.get_logger(__name__)

Model = str | PathLike[str] | nn.Module


@dataclass(frozen=True)
class Described:
    """What is known of a model before it is loaded.

    `class_names` are those of its head or of its run, and `has_head` says whether a head is what it classifies with.
    """

    model: Model
    folder: Path | None
    record: RunRecord | None
    class_names: tuple[str, ...] | None
    templates: tuple[str, ...]
    has_head: bool
    pool: SpuriosityPool | None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Subject:
    """A fine-tuned model as plain weights, with a head or without one, and its start, if that is known."""

    model: nn.Module
    processor: Any
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    head: nn.Linear | None
    start: nn.Module | None
    record: RunRecord | None
    pool: SpuriosityPool | None

    def __post_init__(self) -> None:
        check_finite(logit_scale_of(self.model).detach().reshape(1), "logit scales")
        for name, part in () if self.head is None else self.head.named_parameters():
            check_finite(part.detach(), f"rows of the {name} of the head")

    @property
    def encoder(self) -> DualEncoder:
        """The spec of both models."""
        return DualEncoder.of(self.model, self.processor)


def describe(
    model: Model,
    templates: Sequence[str] | str | None,
    spuriosity: Spuriosity | None,
    trust_remote_code: bool = False,
) -> Described:
    """What is known of a model, from its record and its head.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if templates or the pool are none.
    """
    given = None if templates is None else (templates,) if isinstance(templates, str) else tuple(templates)
    if given is not None:
        check_caption_templates("templates", list(given))
    pool = None if spuriosity is None else as_pool(spuriosity)
    if isinstance(model, nn.Module):
        check_adapters(model)
        head = _head_of(model)
        names = getattr(head, "class_names", None)
        prompts = given or getattr(head, "templates", None) or (DEFAULT_PROMPT,)
        return Described(model, None, None, names, tuple(prompts), head is not None, pool)
    folder = local_folder(model, trust_remote_code=trust_remote_code)
    record = RunRecord.load(folder) if (folder / RECORD_FILE).is_file() else None
    has_head = (folder / HEAD_FILE).is_file()
    own = load_head(folder)[1] if has_head else record.class_names if record is not None else None
    if pool is None and record is not None and record.pool is not None:
        pool = SpuriosityPool.from_dict(record.pool)
    prompts = given or (record.prompts if record is not None else (DEFAULT_PROMPT,))
    names = None if own is None else tuple(own)
    return Described(model, folder, record, names, tuple(prompts), has_head, pool, trust_remote_code)


def columns_for(known: Described, dataset: Any, asked: ColumnSettings) -> ImageColumns:
    """The columns of the dataset, with the classes in the order of the model's head, if it has one."""
    names = asked.class_names
    if known.has_head and known.class_names is not None:
        if names is not None and tuple(names) != tuple(known.class_names):
            raise ValueError(
                f"class_names begins with {list(names[:3])}, and the head of the model has the classes "
                f"{list(known.class_names[:3])}, ...; omit class_names, or pass those of the head"
            )
        names = known.class_names
    elif names is None and class_feature((getattr(dataset, "features", None) or {}).get(asked.label_column)) is None:
        names = known.class_names
    return resolve_evaluation_columns(dataset, replace(asked, class_names=names), what="dataset")


def load_subject(known: Described, processor: Any, base: Model | None, class_names: Sequence[str]) -> Subject:
    """Load what is described, merge an adapter, and find the start.

    Args:
        known: what is known.
        processor: the processor; None loads that of the model.
        base: the start; None: the base model of an adapter, or what the record names, if that can be loaded.
        class_names: the classes, in the order of the labels.

    Raises:
        ValueError: if the start is of another architecture, or the text tower cannot tell the classes apart.
    """
    head: Any
    if isinstance(known.model, nn.Module):
        model = known.model
        head = _head_of(model)
        processor = load_processor(_inner(model), processor)
    else:
        # Of a whole model, `base` is only what it is compared with.
        is_adapter = known.folder is not None and (known.folder / ADAPTER_CONFIG).is_file()
        own_base = _path_or_none(base) if is_adapter and not isinstance(base, nn.Module) else None
        loaded = load(known.folder or known.model, base=own_base, trust_remote_code=known.trust_remote_code)
        model, head = loaded.model, loaded.head
        processor = loaded.processor if processor is None else load_processor(_inner(model), processor)
    start = _start(known, model, base)
    plain = without_head(merged_copy(model) if is_adapted(model) else model)
    if start is not None:
        start = without_head(start)
        check_same_architecture(start, plain)
    check_class_prompts(class_names, known.templates, DualEncoder.of(plain, processor).encode_texts)
    return Subject(plain, processor, tuple(class_names), known.templates, head, start, known.record, known.pool)


def without_head(model: nn.Module) -> nn.Module:
    """The model without a classification head of a cross-entropy run as a module of it; a copy if it has one."""
    if getattr(model, HEAD_NAME, None) is None:
        return model
    bare = exact_copy(model)
    delattr(bare, HEAD_NAME)
    return bare


def _inner(model: nn.Module) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _head_of(model: nn.Module) -> Any:
    """The classification head of a cross-entropy run in memory, which may be a module of its `PeftModel`."""
    return getattr(model, HEAD_NAME, getattr(_inner(model), HEAD_NAME, None))


def _path_or_none(base: str | PathLike[str] | None) -> str | None:
    return None if base is None else fspath(base)


def _start(known: Described, model: nn.Module, base: Model | None) -> nn.Module | None:
    trusted: dict[str, Any] = {"trust_remote_code": known.trust_remote_code}
    if base is not None:
        start = load_model(base, **trusted)
        check_adapters(start)
        return merged_copy(start) if is_adapted(start) else start
    if isinstance(model, PeftModel):
        if known.folder is not None:
            return load_model(base_of(known.folder, **trusted), **trusted)
        # The temperature, which an adapter trains as well, is not kept.
        unloaded: nn.Module = copy.deepcopy(model).unload()
        return unloaded
    source = None if known.record is None else known.record.start
    if source is None or source["id"] is None:
        return None
    try:
        return load_model(local_folder(source["id"], revision=source["revision"], **trusted), **trusted)
    except (OSError, HfHubHTTPError) as error:
        logger.warning(
            "The model that %s started from, %s, could not be loaded (%s), so that repairs that need it are skipped; "
            "pass it as base.",
            known.model,
            source["id"],
            type(error).__name__,
        )
        return None


def in_float64(weight: torch.Tensor) -> Any:
    """A tensor as an array of float64."""
    return weight.detach().double().cpu().numpy()
