"""What cannot be exported is refused before anything expensive is done, and how images are prepared is described."""

import json

import numpy as np
import pytest
from transformers import CLIPImageProcessor, EfficientNetImageProcessor, SiglipImageProcessor, ViTImageProcessor
from transformers.utils import is_torchvision_available

from starft_hf import export
from starft_hf.hub.classifier import Classifier
from starft_hf.weights.export import exporting, graphs, packages
from starft_hf.weights.export.preprocessing import preprocessing_of
from tests.support.exports import PIXEL_TOLERANCE, noisy_images, pixel_values
from tests.support.families import family, towers
from tests.support.tiny import CLASS_NAMES


# Of an odd number of columns around an image, torchvision has the larger half on the right, and cannot be described.
WIDTH = 22 if is_torchvision_available() else 21

PROCESSORS = {
    "clip": CLIPImageProcessor(),
    "crop is smaller": CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 30, "width": 33}),
    "crop is larger": ViTImageProcessor(size={"height": 20, "width": WIDTH}, do_center_crop=True, crop_size=32),
    "siglip": SiglipImageProcessor(size={"height": 24, "width": 32}),
    "bilinear": ViTImageProcessor(size={"height": 24, "width": 24}, resample=2),
    "not normalized": SiglipImageProcessor(size={"height": 24, "width": 24}, do_normalize=False),
    "efficientnet": EfficientNetImageProcessor(
        size={"height": 40, "width": 40}, crop_size={"height": 33, "width": 33}, do_center_crop=True
    ),
    "offset": EfficientNetImageProcessor(
        size={"height": 24, "width": 24}, rescale_factor=1 / 127.5, rescale_offset=True
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_image_processors_are_described_as_they_work(name, tmp_path):
    described = preprocessing_of(PROCESSORS[name])
    (tmp_path / "preprocessing.json").write_text(json.dumps(described))
    images = noisy_images()
    expected = PROCESSORS[name](images=images, return_tensors="pt")["pixel_values"].numpy()
    np.testing.assert_allclose(pixel_values(tmp_path, images), expected, atol=PIXEL_TOLERANCE)
    assert list(described) == ["resize", "interpolation", "crop", "rescale", "mean", "std", "shape"]


def test_configured_means_are_written_as_they_are():
    processor = CLIPImageProcessor()
    described = preprocessing_of(processor)
    assert (described["mean"], described["std"]) == (list(processor.image_mean), list(processor.image_std))


class Gray(CLIPImageProcessor):
    def __call__(self, images, **settings):
        return super().__call__([image.convert("L").convert("RGB") for image in images], **settings)


@pytest.mark.parametrize(
    ("processor", "match"),
    [
        (Gray(), "does more to an image than to resize"),
        (CLIPImageProcessor(do_center_crop=False), "images of different sizes"),
        (CLIPImageProcessor(size={"shortest_edge": 30, "longest_edge": 40}), "does more"),
        (family("siglip2")[1].image_processor, "patches"),
    ],
    ids=["own code", "no crop", "longest edge", "patches"],
)
def test_image_processors_that_cannot_be_described(processor, match):
    with pytest.raises(ValueError, match=match):
        preprocessing_of(processor)


def no_loading(*args, **settings):
    raise AssertionError("it is loaded")


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"dtype": "fp8"}, ValueError, "unknown dtype 'fp8'.*Known: 'fp32', 'fp16', 'int8'"),
        ({"dtype": []}, ValueError, "dtype is empty; pass one or several of"),
        ({"class_names": "owl"}, ValueError, "class_names is the string 'owl'"),
        ({"class_names": []}, ValueError, "class_names is empty"),
        ({"class_names": CLASS_NAMES, "templates": "a photo"}, ValueError, "exactly one {}"),
        ({}, ValueError, r"the classes of .* are not known.*pass class_names=\[...\]"),
        ({"class_names": CLASS_NAMES, "output_dir": "taken"}, FileExistsError, "a folder with files in it"),
        ({"class_names": CLASS_NAMES, "output_dir": "taken", "overwrite": True}, FileExistsError, "notes.txt"),
        ({"class_names": CLASS_NAMES, "output_dir": "taken/notes.txt", "overwrite": True}, OSError, "notes.txt"),
        ({"class_names": CLASS_NAMES, "base": "x"}, ValueError, "base='x' has no effect: .* is not an adapter"),
        ({"model": "./nowhere"}, FileNotFoundError, "there is no folder"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(settings, error, match, spelling_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    monkeypatch.setattr("starft_hf.weights.export.subject.load", no_loading)
    monkeypatch.setattr(exporting, "check_packages", lambda: None)
    settings = {"model": spelling_clip, "output_dir": "out", **settings}
    with pytest.raises(error, match=match):
        export(settings.pop("model"), settings.pop("output_dir"), **settings)
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "notes.txt"]


def test_models_that_are_refused_before_they_are_traced(tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "trace", no_loading)
    monkeypatch.setattr(exporting, "check_packages", lambda: None)
    quantizable = {"class_names": CLASS_NAMES, "dtype": "int8"}
    for parts, settings, match in (
        (family("siglip2"), {}, "patches, and what is exported takes pixel_values of shape"),
        (towers("convnext", "bert"), {"base": "x"}, "base='x' has no effect"),
        (
            towers("resnet", "bert"),
            quantizable,
            "'int8' quantizes matrix products, and the vision_model, a ResNetModel",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            export(Classifier(*parts, CLASS_NAMES), tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_and_an_old_torch(spelling_clip, tmp_path, monkeypatch):
    settings = {"class_names": CLASS_NAMES}
    monkeypatch.setattr(packages, "_TORCH", "99.0")
    with pytest.raises(ImportError, match=r"torch 99.0 or later, and this is"):
        export(spelling_clip, tmp_path / "out", **settings)
    monkeypatch.setattr(packages, "_NEEDED", ("onnx", "no_such_onnx"))
    with pytest.raises(ImportError, match=r"needs no_such_onnx.*pip install 'starft_hf\[export\]'"):
        export(spelling_clip, tmp_path / "out", **settings)
