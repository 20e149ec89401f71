"""A saved or published model, loaded as an image classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from starft_hf.data.captions import check_caption_templates, check_class_prompts
from starft_hf.data.images import ImagePreprocessor, stack_features
from starft_hf.evaluation.zero_shot import zero_shot_weights
from starft_hf.hub.record import RECORD_FILE, RunRecord
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.heads import HEAD_FILE, head_logits, load_head
from starft_hf.models.loading import load_model, load_processor
from starft_hf.models.modes import evaluation_mode


_DEFAULT_TEMPLATE = "a photo of a {}."

# Besides these, repositories have the weights in the formats of other frameworks, each as large again.
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]


@dataclass(frozen=True)
class Prediction:
    """The prediction for an image.

    Attributes:
        label: name of the most probable class.
        score: its probability.
        scores: probability of every class, by name.
    """

    label: str
    score: float
    scores: dict[str, float]


class Classifier:
    """A dual encoder `model` with its processor, and its linear head or a zero-shot one.

    Args:
        class_names: the classes; None if `with_classes` is to name them.
        templates: prompts with `{}` for the class name.
        head: a linear head over `class_names`, instead of the prompts.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        class_names: Sequence[str] | None,
        templates: Sequence[str] = (_DEFAULT_TEMPLATE,),
        head: nn.Linear | None = None,
    ):
        self.model = model.eval()
        self.processor = processor
        self.class_names = None if class_names is None else tuple(class_names)
        self.templates = tuple(templates)
        self.head = head
        self.encoder = DualEncoder.of(model, processor)
        if self.class_names and head is None:
            check_class_prompts(self.class_names, self.templates, self.encoder.encode_texts)

    def with_classes(self, class_names: Sequence[str], templates: Sequence[str] | None = None) -> "Classifier":
        """The same model as a zero-shot classifier of other classes."""
        return Classifier(self.model, self.processor, class_names, templates or self.templates)

    def __call__(self, images: Any, batch_size: int = 32) -> list[Prediction]:
        """A prediction per image.

        Args:
            images: a PIL image, an array of unsigned bytes `(H, W, 3)`, or a sequence of them.
            batch_size: images per forward.

        Raises:
            ValueError: if there are no classes.
            TypeError: if an image is not one.
        """
        if self.class_names is None:
            raise ValueError("no classes are known; pass some with classifier.with_classes(['cat', 'dog'])")
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        preprocess = ImagePreprocessor(self.encoder.image_processor)
        device = next(self.model.parameters()).device
        predictions: list[Prediction] = []
        with evaluation_mode(self.model):
            for start in range(0, len(images), batch_size):
                batch = stack_features(preprocess(images[start : start + batch_size]))
                embeds = self.encoder.encode(self.model, images={name: t.to(device) for name, t in batch.items()})
                for row in self._logits(embeds).double().softmax(-1).cpu():
                    scores = dict(zip(self.class_names, row.tolist(), strict=True))
                    best = self.class_names[int(row.argmax())]
                    predictions.append(Prediction(best, scores[best], scores))
        return predictions

    @cached_property
    def _zero_shot_weights(self) -> Tensor:
        return zero_shot_weights(self.model, self.encoder, self.class_names or (), self.templates)

    def _logits(self, image_embeds: Tensor) -> Tensor:
        if self.head is not None:
            return head_logits(self.head.to(image_embeds.device), image_embeds)
        return image_embeds @ self._zero_shot_weights.to(image_embeds).T


def load(source: str | PathLike[str], *, revision: str | None = None, token: str | None = None) -> Classifier:
    """A model that `StarFTTrainer` has saved or published, as a classifier with its processor, classes and head.

    Args:
        source: a folder or a Hub repository, of a full model or of an adapter, which is loaded with the base model
            that it names. Other dual encoders load as well, without classes.
        revision: branch, tag or commit on the Hub.
        token: for private repositories, that of an adapter's base model among them.

    Raises:
        OSError: if the model, or the base model of an adapter, cannot be found.
    """
    folder = processor_folder = local_folder(source, revision=revision, token=token)
    if (folder / "adapter_config.json").is_file():
        config = PeftConfig.from_pretrained(folder)
        if not config.base_model_name_or_path:
            raise OSError(f"the adapter_config.json of {str(source)!r} must set base_model_name_or_path to a model")
        base = local_folder(config.base_model_name_or_path, revision=config.revision, token=token)
        model: Any = PeftModel.from_pretrained(load_model(base), folder)
        if not any((folder / name).is_file() for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME)):
            processor_folder = base
    else:
        model = load_model(folder)
    names: Sequence[str] | None = None
    templates, head = [_DEFAULT_TEMPLATE], None
    if (folder / RECORD_FILE).is_file():
        record = RunRecord.load(folder)
        names = record.class_names
        prompts = record.config.get("eval_templates") or record.config.get("caption_template") or templates
        templates = [prompts] if isinstance(prompts, str) else list(prompts)
        check_caption_templates(f"{RECORD_FILE} of {str(source)!r}", templates)
    if (folder / HEAD_FILE).is_file():
        head, names = load_head(folder)
    return Classifier(model, load_processor(model, str(processor_folder)), names, templates, head)


def local_folder(source: str | PathLike[str], *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a model; from the Hub, its weights are downloaded in one format, and no checkpoints."""
    if Path(source).exists():
        return Path(source)
    wanted: dict[str, Any] = {"revision": revision, "token": token, "ignore_patterns": "*/*"}
    try:
        folder = Path(snapshot_download(str(source), allow_patterns=_FILES, **wanted))
    except HFValidationError as error:
        raise OSError(f"{str(source)!r} is neither a folder here nor the id of a repository: {error}") from error
    if not any(folder.glob("*.safetensors")):
        snapshot_download(str(source), allow_patterns="pytorch_model*.bin", **wanted)
    return folder
