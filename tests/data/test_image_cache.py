"""The cache of images: the same bytes as without it, decoded once, whatever happens to its file or to who fills it."""

import io
import logging
import pickle
import shutil
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.photos import photo
from starft_hf import StarFTTrainer, compare, discover_spuriosity, evaluate_zero_shot
from starft_hf.data.columns import ImageColumns
from starft_hf.data.decoding import BadImageError, ImageReader
from starft_hf.data.examples import ImageExampleMaker, IndexedExamples
from starft_hf.data.image_cache import ImageCache, ImageCacheSettings
from starft_hf.data.images import ImagePreprocessor, random_crop_box
from starft_hf.utils.store import FeaturePieces
from tests.support.launch import end_quietly, torchrun
from tests.support.tiny import CLASS_NAMES, make_dataset


CPU = torch.device("cpu")
COLUMNS = ImageColumns("image", None, None, None, None)


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos():
    """Photos large and small, wide and high, as JPEG and PNG."""
    sizes = [(130, 97), (97, 130), (200, 150), (300, 40), (16, 16), (10, 14), (150, 151), (64, 48), (99, 64)]
    contents = [encoded(photo(*size, seed=row), ["JPEG", "PNG"][row % 2]) for row, size in enumerate(sizes)]
    return Dataset.from_dict(
        {
            "image": [{"bytes": content, "path": None} for content in contents],
            "label": [row % 4 for row in range(len(sizes))],
        },
        Features(image=Image(), label=ClassLabel(names=CLASS_NAMES)),
    )


def examples_of(dataset, preprocessor, folder, crop_scale=None, **settings):
    cache = ImageCacheSettings(str(folder), crop_scale, progress=False)
    return IndexedExamples(dataset, ImageExampleMaker(COLUMNS, preprocessor), cache=cache, **settings)


def pixels_of(examples):
    return [example["image"]["pixel_values"] for example in examples.__getitems__(range(len(examples)))]


class Cropping(ImageExampleMaker):
    def _preprocess(self, images, samples):
        return self.preprocessor.of_scaled(images, [np.random.default_rng(sample) for sample in samples])


@pytest.fixture
def reads(monkeypatch):
    """The images that are decoded."""
    read, seen = ImagePreprocessor.read, []

    def counted(self, *args, **kwargs):
        seen.append(self)
        return read(self, *args, **kwargs)

    monkeypatch.setattr(ImagePreprocessor, "read", counted)
    return seen


@pytest.mark.parametrize("decoding", ["scaled", "full"])
def test_what_the_model_gets_is_the_same_with_and_without_a_cache(processor, photos, tmp_path, decoding, reads):
    preprocessor = ImagePreprocessor(processor.image_processor, decoding=decoding)
    plain = pixels_of(IndexedExamples(photos, ImageExampleMaker(COLUMNS, preprocessor)))
    examples = examples_of(photos, preprocessor, tmp_path)
    examples.prepare(CPU)
    assert len(reads) == 2 * len(photos)
    assert all(torch.equal(*pair) for pair in zip(plain, pixels_of(examples), strict=True))
    # Once without the cache, and once for it.
    assert len(reads) == 2 * len(photos)


@pytest.mark.parametrize("transform", [None, lambda image: image.resize((20, 20))])
@pytest.mark.parametrize("crop_scale", [(0.9, 1.0), (0.3, 0.8)])
def test_crops_of_cached_images_are_those_of_images_resized_by_the_definition(
    processor, photos, tmp_path, crop_scale, transform, reads
):
    preprocessor = ImagePreprocessor(processor.image_processor, crop_scale, transform)
    cache = ImageCacheSettings(str(tmp_path), crop_scale, progress=False)
    examples = IndexedExamples(photos, Cropping(COLUMNS, preprocessor), cache=cache)
    # Before it is prepared, nothing is read from it: every image is read and resized as it would be kept.
    recomputed = pixels_of(examples)
    examples.prepare(CPU)
    before = len(reads)
    assert all(torch.equal(*pair) for pair in zip(recomputed, pixels_of(examples), strict=True))
    assert len(reads) == before
    assert examples.cache.file.stat().st_size == sum(
        3 * np.prod(examples.cache.image(row).image.size) for row in range(len(photos))
    )
    # By hand, for one: the whole image at the size at which the smallest crop has 16 pixels, then the crop.
    reader = ImageReader(photos, "image", ImagePreprocessor(processor.image_processor, crop_scale))
    whole = reader.row(2)["image"]
    share = 16 / int(np.sqrt(200 * 150 * crop_scale[0] * 3 / 4))
    size = tuple(int(np.ceil(edge * share)) for edge in (200, 150))
    scaled = (200 * whole.scale[0], 150 * whole.scale[1])
    resized = whole.image.resize(size, PILImage.Resampling.BICUBIC, box=(0, 0, *scaled), reducing_gap=2.0)
    assert np.array_equal(examples.cache.image(2).image, resized)


def test_no_crop_is_enlarged_that_would_not_be_without_the_cache(processor, photos, tmp_path):
    crop_scale = (0.3, 0.8)
    preprocessor = ImagePreprocessor(processor.image_processor, crop_scale)
    cache = ImageCache(ImageCacheSettings(str(tmp_path), crop_scale, progress=False), photos, "image", preprocessor)
    cache.prepare(CPU)
    for row in range(len(photos)):
        image = cache.image(row)
        for seed in range(200):
            left, top, right, bottom = random_crop_box(*image.size, crop_scale, np.random.default_rng(seed))
            width, height = (right - left) * image.scale[0], (bottom - top) * image.scale[1]
            assert width >= min(16, right - left) - 1e-9
            assert height >= min(16, bottom - top) - 1e-9


def test_the_key_is_of_the_images_and_of_what_they_are_kept_for(processor, photos, tmp_path):
    def key(dataset=photos, crop_scale=None, **settings):
        preprocessor = ImagePreprocessor(processor.image_processor, crop_scale, **settings)
        return ImageCache(ImageCacheSettings(str(tmp_path), crop_scale), dataset, "image", preprocessor).key

    assert key() == key(photos.select_columns(["image"]))
    assert key(crop_scale=(0.5, 1.0)) == key(crop_scale=(0.5, 0.6), transform=lambda image: image)
    others = [key(photos.select(range(8))), key(photos.shuffle(seed=0)), key(decoding="full")]
    assert len({key(), key(crop_scale=(0.5, 1.0)), key(crop_scale=(0.6, 1.0)), *others}) == 6


def test_a_run_decodes_once_however_many_epochs_and_parts_it_has(clip, processor, config, photos, tmp_path, reads):
    """Training, discovery, evaluation and a second run by `compare`: each kind of image is decoded once."""
    held_out = make_dataset(8, seed=3).select_columns(["image", "label"])
    args = config(num_train_epochs=3, image_cache=str(tmp_path), per_device_train_batch_size=4)
    trainer = StarFTTrainer(clip, args, photos, held_out, processing_class=processor, spuriosity="auto")
    assert len(reads) == len(photos)
    trainer.train()
    metrics = trainer.evaluate()
    once = len(photos) + len(held_out)
    # The first row is read as a check, before anything expensive.
    assert once <= len(reads) <= once + 1
    reads.clear()
    evaluate_zero_shot(clip, processor, held_out, image_cache=str(tmp_path), progress=False)
    compare(clip, args, photos, held_out, processing_class=processor, methods=["FLYP", "kl"], alpha=None)
    assert len(reads) <= 2
    plain = evaluate_zero_shot(trainer.model, processor, held_out, progress=False)
    assert metrics["eval_accuracy"] == plain.accuracy


def test_discovery_alone_keeps_images_too(clip, processor, photos, tmp_path, reads):
    settings = {"pool": ["{} in the snow.", "{} at night."], "progress": False, "permutations": 99}
    results = [
        discover_spuriosity(clip, processor, photos, image_cache=folder, **settings)
        for folder in (str(tmp_path), str(tmp_path), None)
    ]
    assert len(reads) == 2 * len(photos)
    assert str(results[0]) == str(results[1]) == str(results[2])


def flip_a_byte(cache):
    content = bytearray(cache.file.read_bytes())
    content[5] ^= 1
    cache.file.write_bytes(content)


DAMAGES = {
    "a byte is flipped": flip_a_byte,
    "truncated": lambda cache: cache.file.write_bytes(cache.file.read_bytes()[:-7]),
    "gone": lambda cache: cache.file.unlink(),
    "what is known of it is gone": lambda cache: cache.store.path("image-cache", cache.key).unlink(),
    "what is known of it is damaged": lambda cache: cache.store.path("image-cache", cache.key).write_bytes(b"x" * 99),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_never_trusted(processor, photos, tmp_path, damage):
    preprocessor = ImagePreprocessor(processor.image_processor)
    examples = examples_of(photos, preprocessor, tmp_path)
    examples.prepare(CPU)
    whole, content = pixels_of(examples), examples.cache.file.read_bytes()
    DAMAGES[damage](examples.cache)
    examples = examples_of(photos, preprocessor, tmp_path)
    examples.prepare(CPU)
    assert all(torch.equal(*pair) for pair in zip(whole, pixels_of(examples), strict=True))
    assert examples.cache.file.read_bytes() == content


@pytest.mark.parametrize("stop_at", [3, 12, 16])
def test_a_build_that_is_cut_resumes(processor, photos, tmp_path, monkeypatch, reads, stop_at):
    """While sizes are read (9) or images are written; at the cost of what came since the last piece."""
    monkeypatch.setattr("starft_hf.data.image_cache._AT_ONCE", 1)
    monkeypatch.setattr(FeaturePieces, "size", 2)
    preprocessor = ImagePreprocessor(processor.image_processor, (0.5, 1.0))
    whole = examples_of(photos, preprocessor, tmp_path / "whole", (0.5, 1.0))
    whole.prepare(CPU)
    read, calls = ImageReader.row, []

    def stopping(self, index):
        calls.append(index)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(ImageReader, "row", stopping)
    cut = examples_of(photos, preprocessor, tmp_path / "cut", (0.5, 1.0))
    with pytest.raises(KeyboardInterrupt):
        cut.prepare(CPU)
    calls.clear()
    monkeypatch.setattr(ImageReader, "row", lambda self, index: (calls.append(index), read(self, index))[1])
    cut = examples_of(photos, preprocessor, tmp_path / "cut", (0.5, 1.0))
    cut.prepare(CPU)
    done = stop_at - 1 if stop_at < 9 else stop_at - 1 - 9
    assert len(calls) == (18 if stop_at < 9 else 9) - 2 * (done // 2)
    assert cut.cache.file.read_bytes() == whole.cache.file.read_bytes()
    names = [sorted(path.name for path in (tmp_path / part).iterdir()) for part in ("whole", "cut")]
    assert names[0] == names[1]
    assert len(names[0]) == 3


def test_bad_images_are_raised_or_skipped_as_without_a_cache(processor, photos, tmp_path):
    storage = [dict(image) for image in photos.cast_column("image", Image(decode=False))["image"]]
    storage[0], storage[4] = {"bytes": b"broken", "path": None}, {"bytes": storage[2]["bytes"][:900], "path": None}
    spoiled = Dataset.from_dict({"image": storage}, Features(image=Image()))
    preprocessor = ImagePreprocessor(processor.image_processor)
    with pytest.raises(BadImageError, match="row 0"):
        examples_of(spoiled, preprocessor, tmp_path).prepare(CPU)
    examples = examples_of(spoiled, preprocessor, tmp_path, on_bad_image="skip")
    examples.prepare(CPU)
    plain = IndexedExamples(spoiled, ImageExampleMaker(COLUMNS, preprocessor), "skip")
    for cached, row in zip(examples.__getitems__(range(9)), plain.__getitems__(range(9)), strict=True):
        assert torch.equal(cached.pop("image")["pixel_values"], row.pop("image")["pixel_values"])
        assert cached == row
    assert not plain[4]["valid"]


class Rows(torch.utils.data.Dataset):
    column_names = ("image", "label")

    def __getitem__(self, index):
        return make_dataset(1)[0]

    def __len__(self):
        return 8


@pytest.mark.parametrize("part", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda rows: rows.to_iterable_dataset(), "is an iterable dataset"),
        (lambda rows: rows.with_transform(lambda batch: batch), "has a transform"),
        (lambda rows: Rows(), "is a Rows, which has no fingerprint"),
    ],
)
def test_what_cannot_be_cached_is_refused_before_anything_is_loaded(config, photos, tmp_path, part, change, match):
    datasets = {"train_dataset": photos, "eval_dataset": {"held out": photos}}
    datasets[part] = change(photos) if part == "train_dataset" else {"held out": change(photos)}
    args = config(image_cache=str(tmp_path), max_steps=1)
    with pytest.raises(ValueError, match=rf"image_cache keeps images.*{part}.*{match}.*Leave image_cache at None"):
        StarFTTrainer("not-loaded/yet", args, **datasets)


def test_folders_and_disks_are_checked_before_anything_is_decoded(
    clip, processor, config, photos, tmp_path, monkeypatch, reads
):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"image_cache is .*file', which is a file"):
        config(image_cache=str(tmp_path / "file"))
    assert config(image_cache=True).image_cache == config(image_cache="auto").image_cache == "auto"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 10, 0))
    trainer = StarFTTrainer(clip, config(image_cache=str(tmp_path / "new")), photos, processing_class=processor)
    with pytest.raises(
        OSError, match=r"image_cache needs 0.0 GiB for 9 images in .*new', where 0.0 are free; make room"
    ):
        trainer.train()
    # The row that is checked first.
    assert len(reads) <= 1


def test_where_images_are_kept_is_not_recorded(config, tmp_path):
    assert config(image_cache=str(tmp_path)).recorded_settings["image_cache"] == "auto"
    assert config().recorded_settings["image_cache"] is None


def test_a_custom_image_processor_has_to_be_cropped_by_us(processor, photos, tmp_path):
    class Custom(type(processor.image_processor)):
        pass

    custom = Custom(**processor.image_processor.to_dict())
    with pytest.raises(ValueError, match=r"for a Custom that is unknown. Leave image_cache at None"):
        examples_of(photos, ImagePreprocessor(custom), tmp_path)
    examples_of(photos, ImagePreprocessor(custom, (0.5, 1.0)), tmp_path, (0.5, 1.0))


def test_with_a_transform_crop_scale_has_an_effect(clip, processor, config, photos, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    seen = []
    for crop_scale in ((0.9, 1.0), (0.1, 1.0), None):
        args = config(image_cache=str(tmp_path), crop_scale=crop_scale, max_steps=1)
        StarFTTrainer(
            clip,
            args,
            photos,
            processing_class=processor,
            image_transform=lambda image: (seen.append(image.size), image)[1],
        ).train_dataset[2]
    assert "crop_scale" not in caplog.text
    assert [min(size) for size in seen] == [17, 52, 16]


def fill(folder, num_workers=0):
    """Fill a cache from images that need no model, by all processes of this run."""
    images = {"image": [{"bytes": encoded(photo(60 + row, 50, row), "PNG"), "path": None} for row in range(7)]}
    dataset = Dataset.from_dict(images, Features(image=Image()))
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    settings = ImageCacheSettings(str(folder), (0.5, 1.0), num_workers, progress=False)
    cache = ImageCache(settings, dataset, "image", ImagePreprocessor(image_processor, (0.5, 1.0)))
    cache.prepare(CPU)
    return cache


def test_worker_processes_fill_it_and_get_it(tmp_path):
    alone, shared = fill(tmp_path / "alone"), fill(tmp_path / "shared", num_workers=2)
    assert alone.file.read_bytes() == shared.file.read_bytes()
    sent = pickle.loads(pickle.dumps(shared))
    assert np.array_equal(sent.image(3).image, alone.image(3).image)


@pytest.mark.slow
def test_processes_fill_it_together(tmp_path):
    alone = fill(tmp_path / "alone")
    done = torchrun(2, __file__, tmp_path / "shared", timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    names = [sorted(path.name for path in (tmp_path / part).iterdir()) for part in ("alone", "shared")]
    assert names[0] == names[1]
    assert (tmp_path / "shared" / alone.file.name).read_bytes() == alone.file.read_bytes()


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    # A row more than the other's share, and what the other has written.
    assert all(fill(sys.argv[1]).image(row) is not None for row in range(7))
    end_quietly()
