"""Images of every kind are read as the RGB images they show."""

import warnings

import numpy as np
import pytest
from datasets import Dataset, Image
from PIL import Image as PILImage

from starft_hf import StarFTTrainer, evaluate_zero_shot
from starft_hf.data.images import as_rgb
from tests.support.tiny import make_dataset


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


def test_what_is_not_an_image_is_refused():
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
