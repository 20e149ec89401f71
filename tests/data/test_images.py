"""Images of every kind are read as the RGB images they show."""

import logging
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage

from starft_hf import StarFTTrainer, evaluate_zero_shot
from starft_hf.data.rgb import as_rgb
from tests.support.tiny import CLASS_NAMES, make_dataset


# Of the palette that PIL uses, so that nothing is dithered.
COLORS = (
    np.array([[[204, 51, 51], [51, 204, 51]], [[51, 51, 204], [204, 204, 0]]], np.uint8).repeat(20, 0).repeat(20, 1)
)


def patches():
    return PILImage.fromarray(COLORS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "YCbCr", "HSV"])
def test_colors_survive_every_mode(mode):
    shown = np.asarray(as_rgb(patches().convert(mode)), dtype=int)
    # Other color spaces round.
    assert np.abs(shown - COLORS).max() <= 4


def test_gray_images_of_8_and_16_bits_are_the_same():
    grey = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    eight = np.asarray(as_rgb(PILImage.fromarray(grey)))
    sixteen = np.asarray(as_rgb(PILImage.fromarray(grey.astype(np.uint16) * 257)))
    assert np.array_equal(eight, sixteen)
    assert np.array_equal(np.asarray(as_rgb(grey)), eight)
    assert np.asarray(as_rgb(PILImage.fromarray(grey > 100))).max() == 255


def test_transparent_palettes_are_read_without_a_warning(tmp_path):
    palette = patches().convert("P")
    palette.save(tmp_path / "a.png", transparency=bytes(range(256)))
    with warnings.catch_warnings(), PILImage.open(tmp_path / "a.png") as image:
        warnings.simplefilter("error")
        assert np.abs(np.asarray(as_rgb(image), dtype=int) - COLORS).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_however_the_camera_was_held(orientation, tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    turned = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]
    stored = patches()
    for step in turned:
        stored = stored.transpose(PILImage.Transpose(step))
    stored.save(tmp_path / "a.png", exif=exif)
    column = Dataset.from_dict({"image": [str(tmp_path / "a.png")]}).cast_column("image", Image())["image"]
    with PILImage.open(tmp_path / "a.png") as image:
        for found in (image, column[0]):
            assert np.array_equal(np.asarray(as_rgb(found)), COLORS)


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GRAY = PIXELS[:, :, 0]
ARRAYS = {
    "(H, W, 3)": (PIXELS, PIXELS),
    "(3, H, W)": (PIXELS.transpose(2, 0, 1), PIXELS),
    "(H, W, 1)": (GRAY[:, :, None], GRAY[:, :, None].repeat(3, 2)),
    "(1, H, W)": (GRAY[None], GRAY[:, :, None].repeat(3, 2)),
    "(H, W)": (GRAY, GRAY[:, :, None].repeat(3, 2)),
    "tensor (3, H, W)": (torch.from_numpy(PIXELS).permute(2, 0, 1), PIXELS),
    "tensor (3, H, 3)": (torch.from_numpy(PIXELS[:, :3]).permute(2, 0, 1), PIXELS[:, :3]),
    "tensor of floats from 0 to 1": (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255, PIXELS),
    "integers": (PIXELS.astype(np.int64), PIXELS),
    "lists": (PIXELS.tolist(), PIXELS),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_and_tensors_of_every_layout_are_read_as_what_they_show(kind):
    given, shown = ARRAYS[kind]
    assert np.array_equal(np.asarray(as_rgb(given)), shown)


@pytest.mark.parametrize("kind", ["torch", "numpy", "transform"])
def test_formats_of_a_dataset_change_nothing(clip, processor, config, kind):
    dataset = make_dataset()
    if kind == "transform":
        formatted = dataset.with_transform(
            lambda rows: {**rows, "image": [torch.from_numpy(np.array(image)) for image in rows["image"]]}
        )
    else:
        formatted = dataset.with_format(kind)
    settings = {"group_column": "group", "progress": False}
    assert evaluate_zero_shot(clip, processor, formatted, **settings) == evaluate_zero_shot(
        clip, processor, dataset, **settings
    )
    args = config(max_steps=1, crop_scale=None)
    runs = [StarFTTrainer(clip, args, rows, processing_class=processor).train_dataset for rows in (dataset, formatted)]
    for plain, other in zip(*runs, strict=True):
        assert plain["label"] == other["label"]
        assert torch.equal(plain["image"]["pixel_values"], other["image"]["pixel_values"])


class ImageFolder(list):
    """As torchvision's, of pairs."""

    root, classes, class_to_idx = "photos/train", ["a", "b"], {"a": 0, "b": 1}

    def __init__(self, rows):
        super().__init__((row["image"], row["label"]) for row in rows)


FRAMES = {
    "frame": (lambda rows: rows.remove_columns("image").to_pandas(), "pandas DataFrame.*Dataset.from_pandas"),
    "columns": (lambda rows: {"image": rows["image"][:], "label": rows["label"][:]}, "dictionary with.*from_dict"),
    "table": (lambda rows: rows.data.table, "pyarrow Table; pass datasets.Dataset"),
    "path": (lambda rows: "photos", r"str; load it: load_splits\('photos'\)"),
    "pairs": (
        lambda rows: [(row["image"], row["label"]) for row in rows],
        r"rows must be mappings.*; pass datasets.Dataset.from_list\(.* and set class_names$",
    ),
    "rows without names": (lambda rows: [(row["image"],) for row in rows], r"rows must be mappings.*\}$"),
    "an image folder": (
        lambda rows: ImageFolder(rows),
        r"load_splits\('photos/train'\)\['train'\]; or else .*class_names=list\(dataset.classes\)$",
    ),
    "processed": (
        lambda rows: rows.with_transform(lambda batch: {"pixel_values": [0] * len(batch["image"])}),
        r"row 0 has no 'image' but \['pixel_values'\].*dataset.with_format\(None\)",
    ),
    "normalized": (
        lambda rows: rows.with_transform(lambda batch: {"image": [np.full((3, 8, 8), -1.5)], "label": batch["label"]}),
        "row 0: an image holds floating-point numbers from -1.5 to -1.5.*normalizes images itself",
    ),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_what_is_not_a_dataset_of_images_is_refused_before_training(clip, processor, config, dataset, kind):
    make, match = FRAMES[kind]
    with pytest.raises((TypeError, ValueError), match=match):
        StarFTTrainer(clip, config(), make(dataset), processing_class=processor).train()


def test_an_iterable_dataset_of_pairs_is_refused_by_name(clip, processor, config, dataset):
    class Pairs(torch.utils.data.IterableDataset):
        def __iter__(self):
            return ((row["image"], row["label"]) for row in dataset)

    trainer = StarFTTrainer(clip, config(class_names=CLASS_NAMES), Pairs(), processing_class=processor)
    with pytest.raises(TypeError, match=r"row 0 of the iterable dataset is of type tuple; rows must be mappings"):
        trainer.train()


def tensors(dtype, low, high):
    return lambda image: torch.linspace(low, high, 3 * 16 * 16).reshape(3, 16, 16).to(dtype)


TRANSFORMS = {
    "bytes": (tensors(torch.uint8, 0, 255), "returns a tensor of torch.uint8.*Normalize"),
    "integers": (tensors(torch.int64, 0, 255), "returns a tensor of torch.int64"),
    "with a batch dimension": (lambda image: torch.zeros(1, 3, 16, 16), r"of shape \(1, 3, 16, 16\), not \(3, H, W\)"),
    "a dictionary": (lambda image: {"image": image}, "does not return an image.*of type dict"),
    "an array of normalized floats": (lambda image: np.full((16, 16, 3), -1.0), "does not return an image.*floating"),
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_what_an_image_transform_may_not_return(clip, processor, config, dataset, kind):
    transform, match = TRANSFORMS[kind]
    with pytest.raises((TypeError, ValueError), match=match):
        StarFTTrainer(clip, config(), dataset, processing_class=processor, image_transform=transform).train()


@pytest.mark.parametrize(
    ("transform", "warns"),
    [
        (tensors(torch.float32, 0, 1), True),
        (tensors(torch.float32, -1.8, 2.1), False),
        (lambda image: image, False),
        (lambda image: np.asarray(image), False),
        (lambda image: np.asarray(image) / 255, False),
    ],
    ids=["floats from 0 to 1", "normalized", "image", "array", "array of floats"],
)
def test_tensors_that_are_not_normalized_are_warned_of_once(
    clip, processor, config, dataset, caplog, monkeypatch, transform, warns
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    StarFTTrainer(clip, config(), dataset, processing_class=processor, image_transform=transform).train()
    assert caplog.text.count("do not seem to be normalized") == warns


def test_arrays_that_a_transform_returns_are_prepared_as_images(clip, processor, config, dataset):
    made = [
        StarFTTrainer(clip, config(), dataset, processing_class=processor, image_transform=transform).train_dataset[3]
        for transform in (lambda image: image, np.asarray, lambda image: np.asarray(image) / 255)
    ]
    for other in made[1:]:
        assert torch.equal(made[0]["image"]["pixel_values"], other["image"]["pixel_values"])


def test_what_is_not_an_image_is_refused():
    for wrong in (PIXELS.astype(np.int64) * 9, PIXELS[None], np.array(["cat.png"]), PIXELS.astype(np.float32)):
        with pytest.raises(TypeError, match="an image"):
            as_rgb(wrong)
    with pytest.raises(TypeError, match="floating-point numbers"):
        as_rgb(PILImage.fromarray(np.zeros((4, 4), np.float32)))
    with pytest.raises(TypeError, match="of type str"):
        as_rgb("cat.png")


def test_sizes_and_modes_may_be_mixed_and_large(clip, processor, config):
    kinds = [("RGB", (3000, 2000)), ("L", (7, 900)), ("CMYK", (40, 40)), ("P", (1, 1)), ("RGBA", (16, 16))]
    images = [patches().resize(size).convert(mode) for mode, size in kinds]
    rows = {"image": images, "label": [0, 1, 0, 1, 2]}
    dataset = Dataset.from_dict(rows, features=make_dataset().select_columns(["image", "label"]).features)
    trainer = StarFTTrainer(
        clip, config(per_device_train_batch_size=5, max_steps=2), dataset, processing_class=processor
    )
    assert np.isfinite(trainer.train().training_loss)
    assert 0 <= evaluate_zero_shot(clip, processor, dataset, progress=False).accuracy <= 1
