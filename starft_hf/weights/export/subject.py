"""What is exported: a dual encoder as plain weights, and the classifier on its image embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from torch import Tensor, nn

from starft_hf.data.captions import check_caption_templates
from starft_hf.evaluation.zero_shot import zero_shot_weights
from starft_hf.hub.classifier import Classifier, load
from starft_hf.models.adapters import is_adapted, merged_copy
from starft_hf.models.encoder import DualEncoder, logit_bias_of
from starft_hf.models.families import family_of
from starft_hf.models.heads import head_from_weights, select_classes
from starft_hf.models.precision import exact_copy, keeps_autocast
from starft_hf.utils.names import unknown_name
from starft_hf.weights.repair.subject import describe


@dataclass(frozen=True)
class Request:
    """The classes that were asked for, None for those of the model, and the prompts of a zero-shot classifier."""

    class_names: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.templates is not None:
            check_caption_templates("templates", list(self.templates))

    def check(self, source: str, class_names: Sequence[str] | None, has_head: bool) -> tuple[str, ...]:
        """The classes of a model that has these, and maybe a head; ValueError if they cannot be classified."""
        if has_head and self.templates is not None:
            raise ValueError(
                f"templates=[...] has no effect: {source} classifies with a trained head, which has no prompts; leave "
                "it out, or pass load(...).with_classes([...], [...]) for a zero-shot classifier"
            )
        names = self.class_names or class_names
        if names is None:
            raise ValueError(
                f"the classes of {source} are not known, since no run of StarFT has saved it; pass class_names=[...]"
            )
        missing = next((name for name in names if has_head and name not in (class_names or ())), None)
        if missing is not None:
            raise ValueError(
                f"the trained head of {source} has an {unknown_name('class', missing, class_names or ())}"
            )
        return tuple(names)


@dataclass(frozen=True)
class Subject:
    """A dual encoder on the CPU in float32, and logits `weight @ unit image row + bias` of its classes.

    `multi_label` says whether an image may have several of them.
    """

    model: nn.Module
    processor: Any
    class_names: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    multi_label: bool = False

    @property
    def encoder(self) -> DualEncoder:
        """The spec of the model, whose texts share nothing."""
        return DualEncoder.of(self.model, self.processor, packed=False)

    def probabilities(self, image_embeds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Class probabilities `(N, classes)` of unit rows of images."""
        logits = torch.from_numpy(image_embeds) @ self.weight.double().T + self.bias.double()
        return np.asarray((logits.sigmoid() if self.multi_label else logits.softmax(-1)).numpy())


def load_subject(
    source: str | PathLike[str] | Classifier,
    request: Request,
    base: str | PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Load what is exported, check that its classes are known before, and merge an adapter.

    Raises:
        OSError: if the model cannot be found.
        ValueError: if its classes are not known, or not those that were asked for.
    """
    if isinstance(source, Classifier):
        if base is not None:
            raise ValueError(f"base={str(base)!r} has no effect: a loaded classifier has its base model")
        classifier, shown = source, f"the {type(source.model).__name__}"
    else:
        known = describe(source, request.templates, None, trust_remote_code)
        if base is not None and known.folder is not None and not (known.folder / ADAPTER_CONFIG).is_file():
            raise ValueError(f"base={str(base)!r} has no effect: {str(source)!r} is not an adapter; leave it out")
        request.check(repr(str(source)), known.class_names, known.has_head)
        classifier, shown = load(source, base=base, trust_remote_code=trust_remote_code), repr(str(source))
    names = request.check(shown, classifier.class_names, classifier.head is not None)
    model = _plain(classifier.model)
    encoder = DualEncoder.of(model, classifier.processor)
    multi_label = bool(getattr(classifier, "multi_label", False))
    if classifier.head is None:
        weight = zero_shot_weights(model, encoder, names, request.templates or classifier.templates)
        # Where an image has one class, a bias that all classes share changes nothing.
        shared = logit_bias_of(model) if multi_label else None
        head: Any = head_from_weights(weight, None if shared is None else shared.expand(len(names)))
    else:
        head = select_classes(classifier.head, classifier.class_names or (), names)
    bias = torch.zeros(len(names)) if head.bias is None else head.bias.detach()
    return Subject(
        model, classifier.processor, names, head.weight.detach().float().cpu(), bias.float().cpu(), multi_label
    )


def _plain(model: nn.Module) -> nn.Module:
    """The model without an adapter, in float32 on the CPU; not the model itself if that means to change it."""
    if is_adapted(model):
        model = merged_copy(model)
    parameters = list(model.parameters())
    integers = next((value.dtype for value in parameters if not value.is_floating_point()), None)
    if integers is not None:
        raise ValueError(
            f"the {type(model).__name__} has weights that are quantized to {integers}, which PyTorch cannot export; "
            "load it in full precision, and quantize what is exported by dtype='int8'"
        )
    as_exported = all(value.dtype == torch.float32 and value.device.type == "cpu" for value in parameters)
    if as_exported and not keeps_autocast(model):
        return model.eval()
    return exact_copy(model).float().cpu().eval()


def check_int8(model: nn.Module) -> None:
    """Raise ValueError if the image tower has no matrix products to quantize."""
    name = family_of(model).vision_tower
    tower = getattr(model, name, None)
    if isinstance(tower, nn.Module) and not any(isinstance(part, nn.Linear) for part in tower.modules()):
        raise ValueError(
            f"dtype='int8' quantizes matrix products, and the {name}, a {type(tower).__name__}, has convolutions "
            "only; use 'fp16'"
        )
