"""What programs without PyTorch do with an export: Pillow, NumPy and ONNX Runtime, from its files alone."""

import json

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto as TensorProto
from PIL import Image
from transformers.utils import is_torchvision_available


# transformers resizes with torchvision where it is installed, which rounds a byte otherwise than Pillow now and then:
# up to three levels of 255, at standard deviations of a quarter.
PIXEL_TOLERANCE = 0.05 if is_torchvision_available() else 1e-3


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def graph_of(path):
    return onnx.load(path).graph


def run(path, **inputs):
    (found,) = session(path).run(None, {name: np.asarray(value) for name, value in inputs.items()})
    return found


def pixel_values(folder, images):
    """Images, prepared by what preprocessing.json says."""
    how = json.loads((folder / "preprocessing.json").read_text())
    rows = []
    for image in images:
        width, height = image.size
        if "shortest_edge" in (how["resize"] or {}):
            edge = how["resize"]["shortest_edge"]
            size = (edge, edge * height // width) if width <= height else (edge * width // height, edge)
            image = image.resize(size, getattr(Image.Resampling, how["interpolation"].upper()))
        elif how["resize"]:
            size = how["resize"]["width"], how["resize"]["height"]
            image = image.resize(size, getattr(Image.Resampling, how["interpolation"].upper()))
        values = np.asarray(image, dtype=np.float64)
        if how["crop"]:
            height, width = how["crop"]["height"], how["crop"]["width"]
            below, beside = max(height - values.shape[0], 0), max(width - values.shape[1], 0)
            around = ((-(-below // 2), below // 2), (-(-beside // 2), beside // 2), (0, 0))
            values = np.pad(values, around)
            top, left = (values.shape[0] - height) // 2, (values.shape[1] - width) // 2
            values = values[top : top + height, left : left + width]
        values = (values * how["rescale"] - np.array(how["mean"])) / np.array(how["std"])
        rows.append(values.transpose(2, 0, 1).astype(np.float32))
        assert rows[-1].shape == tuple(how["shape"])
    return np.stack(rows)


def noisy_images(number=5):
    rng = np.random.default_rng(0)
    sizes = [(40, 24), (17, 64), (32, 32), (9, 11), (300, 200)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes[:number]]
