"""A saved or published model, loaded as an image classifier."""

import json
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from PIL import Image
from torch import Tensor, nn
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, logging

from starft_hf.data.captions import check_caption_templates, check_class_prompts
from starft_hf.data.images import ImagePreprocessor, stack_features
from starft_hf.data.rgb import ScaledImage
from starft_hf.data.urls import is_url
from starft_hf.evaluation.validation import check_positive
from starft_hf.evaluation.zero_shot import zero_shot_weights
from starft_hf.hub.publishable import publishable
from starft_hf.hub.record import DEFAULT_PROMPT, RECORD_FILE, RunRecord, public_id
from starft_hf.models.adapters import base_model_of, without_peft_warning
from starft_hf.models.encoder import DualEncoder, logit_bias_of
from starft_hf.models.heads import HEAD_FILE, head_logits, load_head
from starft_hf.models.loading import check_folder, load_model, load_processor, not_on_hub
from starft_hf.models.modes import evaluation_mode
from starft_hf.models.sigmoid import NO_BIAS, has_bias, restore_added_bias
from starft_hf.utils.files import expanded, local_or_hub, write_text_atomically
from starft_hf.utils.hashing import tensors_digest
from starft_hf.utils.untrusted import read_json


logger = logging.get_logger(__name__)

# Besides these, repositories have the weights in the formats of other frameworks, each as large again.
_WEIGHTS = ["model*.safetensors", "adapter_model*.safetensors"]
_FILES = ["*.json", "*.txt", "*.model", HEAD_FILE, *_WEIGHTS]
# Read without running what is in them, where there are no others.
_PICKLED = ["pytorch_model*.bin", "adapter_model*.bin"]

# The folder of a copied adapter for its base model.
_BASE = "base"


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image.

    Attributes:
        label: name of the most probable class.
        score: its probability.
        scores: probability of every class, by name.
        labels: the classes of the image: the most probable one, or where it may have several, in the order of the
            classes, all with a probability of at least 0.5.
    """

    label: str
    score: float
    scores: dict[str, float]
    labels: tuple[str, ...] = ()


class Classifier:
    """A dual encoder `model` with its processor, and its linear head or a zero-shot one.

    Args:
        class_names: the classes; None if `with_classes` is to name them.
        templates: prompts with `{}` for the class name.
        head: a linear head over `class_names`, instead of the prompts.
        multi_label: whether an image may have several classes: probabilities are then of every class by itself, and
            the model must have a bias.

    Raises:
        ValueError: if the text tower cannot tell the classes apart, or a multi-label model has no bias.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        class_names: Sequence[str] | None,
        templates: Sequence[str] = (DEFAULT_PROMPT,),
        head: nn.Linear | None = None,
        multi_label: bool = False,
    ):
        if multi_label and not has_bias(model):
            raise ValueError(NO_BIAS.format(type(model).__name__))
        self.multi_label = multi_label
        self.model = model.eval()
        self.processor = processor
        self.class_names = None if class_names is None else tuple(class_names)
        self.templates = tuple(templates)
        self.head = head
        self.encoder = DualEncoder.of(model, processor)
        # With the state of the weights that they belong to.
        self._weights: tuple[list[int], Tensor] | None = None
        if self.class_names and head is None:
            check_class_prompts(self.class_names, self.templates, self.encoder.encode_texts)

    def with_classes(self, class_names: Sequence[str], templates: Sequence[str] | None = None) -> "Classifier":
        """The same model as a zero-shot classifier of other classes."""
        names, prompts = ([value] if isinstance(value, str) else value for value in (class_names, templates))
        if not names:
            raise ValueError("class_names is empty; pass the classes, as in with_classes(['cat', 'dog'])")
        if prompts:
            check_caption_templates("templates", list(prompts))
        several = self.multi_label
        return Classifier(self.model, self.processor, names, prompts or self.templates, multi_label=several)

    def __call__(self, images: Any, batch_size: int = 32) -> list[Prediction]:
        """A prediction per image; several threads may call it, and take turns.

        Args:
            images: a PIL image, the path of one, an array of unsigned bytes `(H, W, 3)`, or several of them: a list, a
                column of a dataset, an array `(N, H, W, 3)`, an iterator.
            batch_size: images per forward.

        Raises:
            ValueError: if there are no classes, or the weights give NaN.
            TypeError: if an image is not one.
        """
        self._check_classes()
        check_positive("batch_size", batch_size)
        several = iter(images if _are_several(images) else [images])
        preprocess = ImagePreprocessor(self.encoder.image_processor)
        predictions: list[Prediction] = []
        while batch := [_read(preprocess, image) for image in islice(several, batch_size)]:
            for row in self.probabilities(stack_features(preprocess.of_scaled(batch))):
                scores = dict(zip(self.class_names or (), row.tolist(), strict=True))
                best = max(scores, key=lambda name: scores[name])
                likely = tuple(name for name, score in scores.items() if score >= 0.5)
                labels = likely if self.multi_label else (best,)
                predictions.append(Prediction(best, scores[best], scores, labels))
        return predictions

    def probabilities(self, images: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """The probability of every class, `(N, classes)` in float64 on the CPU, of each by itself if `multi_label`.

        Args:
            images: the tensors of a batch, as `ImagePreprocessor` and `stack_features` make them.
            dtype: autocast dtype of the model, such as `torch.bfloat16`; None: the model's own.

        Raises:
            ValueError: if there are no classes.
        """
        self._check_classes()
        device = next(self.model.parameters()).device
        # Embedding texts changes how the model computes while it lasts.
        with _lock_of(self.model), evaluation_mode(self.model):
            with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
                embeds = self.encoder.encode(self.model, images={name: t.to(device) for name, t in images.items()})
            logits = self._logits(embeds).cpu().double()
        if bool(logits.isnan().any()):
            raise ValueError(
                "the model gives probabilities that are NaN; its weights are damaged, or its dtype overflows"
            )
        return logits.sigmoid() if self.multi_label else logits.softmax(-1)

    def _check_classes(self) -> None:
        if self.class_names is None:
            raise ValueError("no classes are known; pass some with classifier.with_classes(['cat', 'dog'])")

    def _zero_shot_weights(self) -> Tensor:
        # Of inference tensors no versions are known.
        versions = [0 if value.is_inference() else value._version for value in self.model.parameters()]
        state = [*versions, *(value.data_ptr() for value in self.model.parameters())]
        if self._weights is None or self._weights[0] != state:
            found = zero_shot_weights(self.model, self.encoder, self.class_names or (), self.templates)
            self._weights = state, found
        return self._weights[1]

    def _logits(self, image_embeds: Tensor) -> Tensor:
        if self.head is not None:
            return head_logits(self.head.to(image_embeds.device), image_embeds)
        logits = image_embeds @ self._zero_shot_weights().to(image_embeds).T
        bias = logit_bias_of(base_model_of(self.model)) if self.multi_label else None
        return logits if bias is None else logits + bias


_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_GUARD = threading.Lock()


def _lock_of(model: nn.Module) -> threading.RLock:
    """The lock of all classifiers with a model."""
    with _GUARD:
        return _LOCKS.setdefault(model, threading.RLock())


def _are_several(images: Any) -> bool:
    """Whether an argument holds images rather than being one."""
    if isinstance(images, (np.ndarray, Tensor)):
        return images.ndim > 3 or images.dtype == object
    return isinstance(images, Iterable) and not isinstance(images, (str, Mapping))


def _read(preprocess: ImagePreprocessor, image: Any) -> ScaledImage:
    """An image, or the one in a file, of which no more is decoded than the model sees."""
    if is_url(image):
        raise ValueError(f"{image!r} is a URL; download the image, and pass its path")
    if not isinstance(image, (str, PathLike)):
        return preprocess.read(image)
    with Image.open(expanded(image)) as opened:
        return preprocess.read(opened, is_own=True)


def load(
    source: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> Classifier:
    """A model that `StarFTTrainer` has saved or published, as a classifier with its processor, classes and head.

    Args:
        source: a folder or a Hub repository, of a full model or of an adapter, which is loaded with the base model
            that it names. Other dual encoders load as well, without classes.
        base: the base model of an adapter, if it is not the one that the adapter names.
        revision: branch, tag or commit on the Hub.
        token: for private repositories, that of an adapter's base model among them.
        trust_remote_code: whether to run code that comes with a model whose classes transformers does not have.

    Raises:
        OSError: if the model, or the base model of an adapter, cannot be found.
        ValueError: if its classes are not known, and its code may not be run.
    """
    trusted = {"trust_remote_code": trust_remote_code}
    folder = processor_folder = local_folder(source, revision=revision, token=token, **trusted)
    if (folder / ADAPTER_CONFIG).is_file():
        base_folder = base_of(folder, base, token=token, **trusted)
        plain = load_model(base_folder, **trusted)
        if base is not None:
            _warn_of_other_base(plain, folder, base)
        # One that training has added is saved with the adapter, which is loaded into what is there.
        restore_added_bias(plain, folder)
        with without_peft_warning():
            model: Any = PeftModel.from_pretrained(plain, folder)
        if not any((folder / name).is_file() for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)):
            processor_folder = base_folder
    elif base is not None:
        raise ValueError(f"base={str(base)!r} has no effect: {str(source)!r} is not an adapter; leave it out")
    else:
        model = load_model(folder, **trusted)
    names: Sequence[str] | None = None
    templates, head, several = [DEFAULT_PROMPT], None, False
    if (folder / RECORD_FILE).is_file():
        record = RunRecord.load(folder)
        names, several = record.class_names, record.multi_label
        templates = list(record.prompts)
        check_caption_templates(f"{RECORD_FILE} of {str(source)!r}", templates)
    if (folder / HEAD_FILE).is_file():
        head, names = load_head(folder)
    return Classifier(model, load_processor(model, str(processor_folder), **trusted), names, templates, head, several)


def _warn_of_other_base(plain: nn.Module, adapter: Path, base: str | PathLike[str]) -> None:
    """Warn if the weights of a base model that was passed are not those that the adapter was trained on."""
    known = RunRecord.load(adapter).start.get("fingerprint") if (adapter / RECORD_FILE).is_file() else None
    if known is not None and tensors_digest(plain.state_dict()) != known:
        logger.warning("base=%r has other weights than the model that the adapter was trained on.", str(base))


def base_of(
    adapter: Path,
    base: str | PathLike[str] | None = None,
    *,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """The folder of the base model of an adapter in a folder: `base`, or the one that the adapter names.

    Raises:
        OSError: if it cannot be found, or the adapter names none.
    """
    config = PeftConfig.from_pretrained(adapter)
    named = base or config.base_model_name_or_path
    if not named:
        raise FileNotFoundError(
            f"the {ADAPTER_CONFIG} of {str(adapter)!r} names no base model; pass base='its id or folder'"
        )
    named = named if base else _base_in(adapter, str(named))
    named = local_or_hub(named, "base" if base else "base_model_name_or_path of the adapter")
    revision = None if base else config.revision
    return local_folder(named, revision=revision, token=token, trust_remote_code=trust_remote_code)


def _base_in(adapter: Path, named: str) -> str | Path:
    """The base model that an adapter names, in the adapter's own folder if it lies there, and moves with it.

    A folder of that name which is there by chance, such as the merged model, does not hide one that exists elsewhere.
    """
    is_inside = (adapter / named).is_dir() and (named == _BASE or not Path(named).is_dir())
    return adapter / named if is_inside else named


def copy_model(source: Path, target: Path) -> None:
    """Copy what `load` reads of a folder, with the base model of an adapter if that is in a folder as well.

    Raises:
        ValueError: if there is no model, or the base model of an adapter is neither in a folder nor on the Hub.
    """
    if not any((source / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG)):
        raise ValueError(f"{str(source)!r} is not a model: it has neither {CONFIG_NAME} nor {ADAPTER_CONFIG}")
    target.mkdir(parents=True)
    weights = [] if _has_weights(source) else _PICKLED
    for name in publishable(source, weights)[0]:
        if "/" not in name and not name.endswith(".md"):
            shutil.copyfile(source / name, target / name)
    config = target / ADAPTER_CONFIG
    if not config.is_file():
        return
    content = read_json(config)
    name = str(content.get("base_model_name_or_path"))
    if (base := Path(_base_in(source, name))).is_dir():
        copy_model(base, target / _BASE)
        content["base_model_name_or_path"] = _BASE
        write_text_atomically(config, json.dumps(content, indent=2) + "\n")
    elif public_id(name) is None:
        raise ValueError(
            f"the base model of the adapter {str(source)!r} is {name!r}, which is not there; set "
            f"base_model_name_or_path in its {ADAPTER_CONFIG} to its folder or Hub id"
        )


def local_folder(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """The folder of a model; from the Hub, its weights are downloaded in one format, and no checkpoints.

    Code is downloaded only if it is trusted.
    """
    source = local_or_hub(source, "model")
    if Path(source).exists():
        check_folder(Path(source))
        return Path(source)
    wanted: dict[str, Any] = {"revision": revision, "token": token, "ignore_patterns": "*/*"}
    try:
        files = [*_FILES, "*.py"] if trust_remote_code else _FILES
        folder = Path(snapshot_download(str(source), allow_patterns=files, **wanted))
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{str(source)!r} is neither a folder here nor the id of a repository: {error}"
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise FileNotFoundError(not_on_hub(str(source), error)) from error
    if not _has_weights(folder):
        snapshot_download(str(source), allow_patterns=_PICKLED, **wanted)
    return folder


def _has_weights(folder: Path) -> bool:
    """Whether a folder has the weights of a model or an adapter in files of safetensors."""
    return any(any(folder.glob(pattern)) for pattern in _WEIGHTS)
