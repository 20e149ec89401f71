"""What an export keeps and what it costs: `python -m benchmarks.export`.

The demo's model is exported in every dtype and classifies the test images of the demo's world, prepared by Pillow and
NumPy from preprocessing.json: accuracy and sizes. The image tower of a CLIP of random weights, of the shape of
ViT-B/32, takes one image after the other, on one thread: its time as a share of PyTorch's, in turn, after a first
round that is not counted. Stored in export.json, which the table of docs/export.md is made of.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import AutoProcessor, CLIPConfig, CLIPModel

from starft_hf import export, load
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import TRAINED_CLASSES, make_split
from starft_hf.hub.classifier import Classifier
from starft_hf.utils.files import write_text_atomically
from starft_hf.weights.export.precisions import DTYPES, file_name
from starft_hf.weights.export.preprocessing import bytes_as_described


RESULTS = Path(__file__).parent / "export.json"
PYTORCH = "PyTorch, fp32"
ROUNDS = 15
_BATCH = 83


def session(path: Path) -> onnxruntime.InferenceSession:
    """A file on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure_accuracy() -> dict[str, dict[str, Any]]:
    """Accuracies on the test images, how many predictions are those of PyTorch, and bytes of the classifier."""
    rows = make_split("test")
    images, labels, groups = list(rows["image"]), np.array(rows["label"]), np.array(rows["group"])
    classifier = load(MODEL_FOLDER).with_classes(TRAINED_CLASSES)
    predictions = {PYTORCH: np.array([TRAINED_CLASSES.index(found.label) for found in classifier(images)])}
    sizes = {PYTORCH: (MODEL_FOLDER / "model.safetensors").stat().st_size}
    with tempfile.TemporaryDirectory() as folder:
        export(classifier, Path(folder) / "out", dtype=DTYPES, progress=False)
        how = json.loads((Path(folder) / "out" / "preprocessing.json").read_text())
        pixels = np.stack([bytes_as_described(how, image) for image in images]) * how["rescale"]
        shape = (1, 3, 1, 1)
        pixels = (pixels - np.reshape(how["mean"], shape)) / np.reshape(how["std"], shape)
        for dtype in DTYPES:
            path = Path(folder) / "out" / file_name("classifier", dtype)
            running = session(path)
            parts = np.split(pixels.astype(np.float32), range(_BATCH, len(pixels), _BATCH))
            found = np.concatenate([running.run(None, {"pixel_values": part})[0] for part in parts])
            predictions[dtype], sizes[dtype] = found.argmax(-1), path.stat().st_size
    return {
        name: {
            "accuracy": float((found == labels).mean()),
            "worst_group": min(float((found == labels)[groups == group].mean()) for group in np.unique(groups)),
            "same": int((found == predictions[PYTORCH]).sum()),
            "images": len(labels),
            "bytes": sizes[name],
        }
        for name, found in predictions.items()
    }


def measure_time() -> dict[str, Any]:
    """The time of one image as shares of PyTorch's, by dtype, and bytes of the image tower."""
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(MODEL_FOLDER)
    text = {"num_hidden_layers": 1, "vocab_size": len(processor.tokenizer), "eos_token_id": 2, "pad_token_id": 0}
    model = CLIPModel(CLIPConfig(text_config=text)).eval()
    processor.image_processor.size = {"shortest_edge": 224}
    processor.image_processor.crop_size = {"height": 224, "width": 224}
    with tempfile.TemporaryDirectory() as folder:
        result = export(Classifier(model, processor, TRAINED_CLASSES), Path(folder) / "out", dtype=DTYPES)
        image = torch.randn(1, 3, 224, 224)
        calls: dict[str, Callable[[], Any]] = {PYTORCH: lambda: _embed(model, image)}
        for dtype in DTYPES:
            running = session(Path(folder) / "out" / file_name("image_encoder", dtype))
            calls[dtype] = partial(_run, running, image)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS + 1):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: [one / other for one, other in zip(own[1:], seconds[PYTORCH][1:], strict=True)]
        for name, own in seconds.items()
        if name != PYTORCH
    }
    return {
        name: {
            "ratio": statistics.median(own),
            "quartiles": statistics.quantiles(own, n=4)[::2],
            "bytes": result.files[file_name("image_encoder", name)],
        }
        for name, own in ratios.items()
    }


def _embed(model: CLIPModel, image: torch.Tensor) -> Any:
    with torch.no_grad():
        return model.get_image_features(pixel_values=image)


def _run(running: onnxruntime.InferenceSession, image: torch.Tensor) -> Any:
    return running.run(None, {"pixel_values": image.numpy()})


def table(results: dict[str, Any]) -> list[str]:
    """The results as lines of Markdown."""
    lines = [
        "| Classifier | average, % | worst group, % | predictions as PyTorch's | size | time of ViT-B/32 |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    full = results["accuracy"]["fp32"]["bytes"]
    for name, row in results["accuracy"].items():
        timed = results["time"].get(name)
        shares = ("", "1.00") if timed is None else (f"{row['bytes'] / full:.2f}", f"{timed['ratio']:.2f}")
        lines.append(
            f"| {name} | {100 * row['accuracy']:.1f} | {100 * row['worst_group']:.1f} | "
            f"{row['same']} of {row['images']} | {shares[0]} | {shares[1]} |"
        )
    return lines


def main() -> None:
    """Measure, print and store."""
    torch.set_num_threads(1)
    results = {
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "accuracy": measure_accuracy(),
        "time": measure_time(),
    }
    write_text_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
