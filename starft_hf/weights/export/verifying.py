"""What was written, run by ONNX Runtime and compared with PyTorch, for one input and for several."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from starft_hf.models.encoder import DualEncoder
from starft_hf.models.modes import evaluation_mode
from starft_hf.weights.export.graphs import Tower
from starft_hf.weights.export.precisions import MOST_DISTANCE
from starft_hf.weights.export.subject import Subject


Floats = NDArray[np.float64]

_EXACT = 1e-4
_SEVERAL = 3


def run_file(path: Path, inputs: Mapping[str, Tensor]) -> Floats:
    """What the graph in a file makes of its inputs, by ONNX Runtime on the CPU; ValueError if it cannot run it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    except Exception as error:
        raise ValueError(
            f"{path.name} was written and removed: ONNX Runtime {onnxruntime.__version__} cannot run it ({error})"
        ) from error
    return np.asarray(found, dtype=np.float64)


class Expected:
    """What PyTorch makes of noise: one image and several, and of prompts the same."""

    def __init__(self, subject: Subject):
        self.subject, encoder = subject, subject.encoder
        shape = encoder.blank_image()["pixel_values"].shape[1:]
        generator = torch.Generator().manual_seed(0)
        images = [torch.rand(n, *shape, generator=generator) * 4 - 2 for n in (1, _SEVERAL)]
        names = subject.class_names
        texts = [[names[0]], [f"a photo of a {name}." for name in (names * _SEVERAL)[:_SEVERAL]]]
        self.inputs = {"image_encoder": [{"pixel_values": part} for part in images]}
        self.inputs["text_encoder"] = [encoder.encode_texts(part) for part in texts]
        self.embeds = {name: [_embed(subject, encoder, part) for part in parts] for name, parts in self.inputs.items()}

    def check_tower(self, path: Path, tower: Tower, dtype: str) -> tuple[float, list[Floats]]:
        """The largest difference of a tower's embeddings, and these; ValueError if they are of another tower."""
        inputs = [{name: part[name] for name in tower.inputs} for part in self.inputs[tower.file]]
        found = [run_file(path, part) for part in inputs]
        pairs = list(zip(found, self.embeds[tower.file], strict=True))
        distance = max(float(np.linalg.norm(one - other, axis=-1).max()) for one, other in pairs)
        _check(path.name, distance, MOST_DISTANCE[dtype], "unit rows, by their distance,")
        return _difference(pairs), found

    def check_classifier(self, path: Path, embeds: list[Floats]) -> float:
        """The largest difference of class probabilities; ValueError if they are not those of its own embeddings."""
        found = [run_file(path, part) for part in self.inputs["image_encoder"]]
        own = _difference(list(zip(found, map(self.subject.probabilities, embeds), strict=True)))
        _check(path.name, own, _EXACT, "probabilities")
        expected = map(self.subject.probabilities, self.embeds["image_encoder"])
        return _difference(list(zip(found, expected, strict=True)))


def _embed(subject: Subject, encoder: DualEncoder, inputs: Mapping[str, Any]) -> Floats:
    kind = "images" if "pixel_values" in inputs else "texts"
    with evaluation_mode(subject.model):
        embeds = encoder.encode(subject.model, **{kind: inputs})
    return np.asarray(embeds.double().numpy())


def _difference(pairs: list[tuple[Floats, Floats]]) -> float:
    return max(float(np.abs(one - other).max()) for one, other in pairs)


def _check(name: str, found: float, most: float, what: str) -> None:
    # Not `found > most`, which is false for NaN.
    if not found <= most:
        raise ValueError(
            f"{name} was written, run and removed: its {what} differ from those of PyTorch by {found:.2g}, more than "
            f"{most:g}"
        )
