"""Image formats that Pillow opens by itself, by a plugin, or not at all."""

import sys
import types

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, features
from torch.utils.data import DataLoader

from starft_hf.data import image_formats
from starft_hf.data.decoding import BadImageError, ImageReader
from starft_hf.data.image_formats import is_image, needs_plugin, register_plugins
from starft_hf.data.images import ImagePreprocessor
from tests.support.shards import encoded
from tests.support.tiny import images_of, make_dataset


IMAGE = make_dataset(1)[0]["image"]
HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00"


@pytest.fixture
def no_heic(monkeypatch):
    """Pillow without a plugin for HEIC."""
    Image.init()
    for name in ("EXTENSION", "OPEN"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    for ending in [ending for ending, kind in Image.EXTENSION.items() if kind in ("HEIF", "HEIC")]:
        del Image.EXTENSION[ending]


def rows_of(contents, paths=(None,)):
    rows = [{"bytes": content, "path": path} for content, path in zip(contents, paths, strict=True)]
    return Dataset.from_dict({"image": rows}, features=Features(image=ImageFeature()))


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a.jpg", True), ("A.PNG", True), ("a.webp", True), ("a.txt", False), ("a", False), (".jpg", False)]
    + [(f"a.{ending}", False) for ending in ("pdf", "eps", "mpg", "h5", "wmf")],
)
def test_which_files_are_images(path, expected):
    assert is_image(path) == expected
    assert needs_plugin(path) is None


def test_avif_through_pillow(tmp_path, clip, processor):
    if not features.check("avif"):
        pytest.skip("Pillow was built without AVIF")
    path = tmp_path / "a.avif"
    IMAGE.save(path, quality=100)
    assert is_image(str(path))
    assert needs_plugin(str(path)) is None
    row = ImageReader(rows_of([path.read_bytes()]), "image", ImagePreprocessor(processor.image_processor)).row(0)
    assert row["image"].size == IMAGE.size
    assert abs(np.asarray(row["image"].image, float) - np.asarray(IMAGE, float)).mean() < 20


def test_avif_needs_a_newer_pillow(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    assert not is_image("a.avif")
    assert needs_plugin("a.AVIF") == "AVIF images need a newer Pillow: pip install --upgrade pillow"


def test_heic_is_named_with_the_package_that_it_needs(no_heic, tmp_path, processor):
    for path in ("a.heic", "b/A.HEIC", "a.heif", "a.hif"):
        assert not is_image(path)
        assert needs_plugin(path) == "HEIC images need another package: pip install pillow-heif"
    # By its content as well, whatever its name.
    assert needs_plugin("a.jpg", HEIC)
    assert needs_plugin("a.heic", encoded(IMAGE)) is None
    (tmp_path / "a.jpg").write_bytes(HEIC)
    for rows in (rows_of([HEIC]), rows_of([None], [str(tmp_path / "a.jpg")])):
        with pytest.raises(BadImageError, match="HEIC images need another package: pip install pillow-heif; "):
            ImageReader(rows, "image", ImagePreprocessor(processor.image_processor)).row(0)


def test_a_plugin_that_is_installed_is_registered(no_heic, monkeypatch):
    def register():
        Image.register_open("HEIF", lambda *given: None, lambda prefix: False)
        Image.register_extension("HEIF", ".heic")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    register_plugins()
    assert is_image("a.heic")
    assert needs_plugin("a.heic") is None
    assert needs_plugin("a.jpg", HEIC) is None


def test_heic_in_workers_that_are_spawned(tmp_path, clip, processor):
    """Only with pillow-heif, an optional dependency."""
    pytest.importorskip("pillow_heif")
    from starft_hf.models.encoder import DualEncoder

    assert image_formats.is_image("a.heic")
    IMAGE.save(tmp_path / "a.heic", quality=100)
    rows = rows_of([None, None], [str(tmp_path / "a.heic")] * 2)
    examples = images_of(rows, DualEncoder.of(clip, processor))
    for context in (None, "spawn"):
        loader = DataLoader(examples, num_workers=int(context is not None), multiprocessing_context=context)
        assert len(list(loader)) == 2
