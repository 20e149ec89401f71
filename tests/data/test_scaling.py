"""Scaled decoding: as few pixels as an image needs, and the same crops of the same image."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from benchmarks.photos import photo
from starft_hf import evaluate_zero_shot
from starft_hf.data.decoding import ImageReader
from starft_hf.data.fingerprint import preprocessing_fingerprint
from starft_hf.data.images import ImagePreprocessor, random_crop_box
from starft_hf.data.rgb import ScaledImage
from starft_hf.models.pixels import byte_values


def encoded(image, kind="JPEG", **settings):
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 90} if kind != "PNG" else {}), **settings)
    return buffer.getvalue()


def read(content, preprocessor, mode=None):
    """The image of a row with these bytes."""
    dataset = Dataset.from_dict({"image": [{"bytes": content, "path": None}]}, Features(image=Image(mode=mode)))
    return ImageReader(dataset, "image", preprocessor).row(0)["image"]


def pixels(image):
    return np.asarray(image, dtype=int)


PHOTO = photo(641, 479)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "MPO"])
@pytest.mark.parametrize("crop_scale", [None, (0.9, 1.0), (0.08, 1.0)])
def test_what_is_decoded_is_twice_what_a_crop_needs_or_all_there_is(processor, kind, crop_scale):
    preprocess = ImagePreprocessor(processor.image_processor, crop_scale)
    for width, height in ((641, 479), (479, 641), (900, 40), (30, 24)):
        image = read(encoded(photo(width, height), kind), preprocess)
        assert image.size == (width, height)
        if crop_scale is None:
            needed = [min(*image.image.size) / 16]
        else:
            boxes = [random_crop_box(width, height, crop_scale, np.random.default_rng(seed)) for seed in range(100)]
            needed = [min((box[2] - box[0]), (box[3] - box[1])) * image.scale[0] / 16 for box in boxes]
        assert min(needed) >= 2 or image.image.size == (width, height)
        # Without that, nothing would be saved.
        assert image.image.width * image.image.height <= max(16, 640 * 480 / 4) or crop_scale == (0.08, 1.0)


@pytest.mark.parametrize("crop_scale", [None, (0.5, 1.0)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_scaled_images_show_the_same_in_the_same_place(processor, kind, crop_scale):
    """A gradient in each direction: a crop or a resize that is off by a pixel would show."""
    ramps = np.stack([*np.meshgrid(np.linspace(0, 255, 643), np.linspace(0, 255, 479)), np.full((479, 643), 99)], -1)
    content = encoded(PILImage.fromarray(ramps.astype(np.uint8)), kind)
    made = []
    for decoding in ("scaled", "full"):
        preprocess = ImagePreprocessor(processor.image_processor, crop_scale, decoding=decoding)
        generators = None if crop_scale is None else [np.random.default_rng(3)]
        made.append(preprocess.of_scaled([read(content, preprocess)], generators)[0]["pixel_values"].int())
    # A pixel of the result is 11 levels or more.
    assert (made[0] - made[1]).abs().max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_modes_and_orientations_survive(processor, mode, orientation):
    preprocess = ImagePreprocessor(processor.image_processor, (0.9, 1.0))
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    content = encoded(PHOTO.convert(mode), exif=exif, progressive=orientation == 3)
    whole = ImagePreprocessor(processor.image_processor, decoding="full")
    scaled, full = read(content, preprocess), read(content, whole)
    assert scaled.size == full.size == full.image.size
    assert scaled.image.width < full.image.width / 4
    assert scaled.image.mode == "RGB"
    expected = pixels(full.image.resize(scaled.image.size, PILImage.Resampling.BOX))
    # Colors that are clipped are clipped after they are averaged, not before.
    assert np.abs(pixels(scaled.image) - expected).mean() < 8


def test_the_mode_of_a_dataset_is_respected(processor):
    gray = read(encoded(PHOTO), ImagePreprocessor(processor.image_processor), mode="L").image
    assert np.array_equal(pixels(gray)[:, :, 0], pixels(gray)[:, :, 2])


def test_full_is_what_pillow_decodes(processor):
    content = encoded(PHOTO)
    for preprocess in (
        ImagePreprocessor(processor.image_processor, decoding="full"),
        # A transform may do anything with an image.
        ImagePreprocessor(processor.image_processor, transform=lambda image: image),
    ):
        image = read(content, preprocess)
        assert np.array_equal(pixels(image.image), pixels(PILImage.open(io.BytesIO(content))))


def test_images_of_others_are_left_as_they_are(processor):
    image = PILImage.open(io.BytesIO(encoded(PHOTO)))
    ImagePreprocessor(processor.image_processor)([image])
    assert image.size == PHOTO.size


def resized_by_torch(image):
    """What torchvision's RandomResizedCrop, which many train with, makes of an image by default."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    size = [max(16, 16 * edge // min(image.size)) for edge in (image.height, image.width)]
    resized = F.interpolate(values, size=size, mode="bilinear", antialias=True).round().byte()
    return PILImage.fromarray(resized[0].permute(1, 2, 0).numpy())


def with_repeated_chroma(image):
    """What decoders give that repeat the colors of 4:2:0, of which there is one in four pixels, rather than blend."""
    luma, *chroma = image.convert("YCbCr").split()
    chroma = [channel.reduce(2).resize(image.size, PILImage.Resampling.NEAREST) for channel in chroma]
    return PILImage.merge("YCbCr", [luma, *chroma]).convert("RGB")


@pytest.mark.parametrize("other", [resized_by_torch, with_repeated_chroma])
def test_embeddings_move_by_less_than_between_two_common_decoders(clip, processor, other):
    def embeds(preprocess, images):
        values = torch.stack([preprocess.of_scaled([image])[0]["pixel_values"] for image in images])
        values = byte_values(processor.image_processor)(values)
        with torch.no_grad():
            return F.normalize(clip.get_image_features(pixel_values=values).pooler_output, dim=-1)

    contents = [encoded(photo(641, 479, seed)) for seed in range(8)]
    scaled, full = (ImagePreprocessor(processor.image_processor, decoding=kind) for kind in ("scaled", "full"))
    expected = embeds(full, [read(content, full) for content in contents])
    moved = embeds(scaled, [read(content, scaled) for content in contents]) - expected
    others = [full.read(other(PILImage.open(io.BytesIO(content)))) for content in contents]
    assert 0 < moved.norm(dim=-1).mean() < (embeds(full, others) - expected).norm(dim=-1).mean()


def test_the_setting_is_checked_and_part_of_the_keys(clip, processor, dataset, config):
    with pytest.raises(ValueError, match=r"image_decoding.*'half'.*scaled"):
        evaluate_zero_shot(clip, processor, dataset, image_decoding="half")
    with pytest.raises(ValueError, match=r"image_decoding.*'half'.*scaled"):
        config(image_decoding="half")
    keys = {preprocessing_fingerprint(processor.image_processor, kind) for kind in ("scaled", "full")}
    assert len(keys) == 2


def test_random_crops_are_those_of_pillow_but_for_single_levels():
    box = (17, 9, 600, 470)
    found = pixels(ScaledImage(PHOTO, PHOTO.size).cropped((224, 224), box))
    expected = pixels(PHOTO.resize((224, 224), PILImage.Resampling.BICUBIC, box=box))
    assert np.abs(found - expected).max() <= 3
    assert np.abs(found - expected).mean() < 0.05
