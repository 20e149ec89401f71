"""Whatever features depend on changes their key."""

import io
import os
import zipfile

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, concatenate_datasets
from PIL import Image as PILImage
from torch import nn
from transformers import CLIPModel

from starft_hf.data.fingerprint import images_fingerprint, preprocessing_fingerprint
from starft_hf.models.adapters import with_adapter
from starft_hf.models.encoder import DualEncoder
from starft_hf.reference.fingerprint import model_fingerprint, texts_fingerprint
from tests.support.tiny import TINY_CLIP, make_dataset


@pytest.fixture
def encoder(clip, processor):
    return DualEncoder.of(clip, processor)


def key_of_images(dataset):
    return images_fingerprint(dataset, "image")


def encoded(seed, kind="PNG"):
    content = io.BytesIO()
    PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (4, 4, 3)).astype(np.uint8)).save(content, kind)
    return content.getvalue()


def of_paths(*paths):
    return Dataset.from_dict({"image": [str(path) for path in paths]}).cast_column("image", Image())


def test_other_images_have_another_key(dataset):
    keys = [
        key_of_images(dataset),
        key_of_images(make_dataset(seed=1)),
        key_of_images(dataset.select(range(23))),
        key_of_images(dataset.shuffle(seed=0)),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of_images(dataset) == key_of_images(make_dataset())
    assert key_of_images(dataset.shuffle(seed=0)) == key_of_images(dataset.shuffle(seed=0))


def test_a_file_that_changes_beside_its_table_changes_the_key(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encoded(0))
    files = of_paths(file)
    before = key_of_images(files)
    file.write_bytes(encoded(1))
    assert key_of_images(files) != before


def test_files_written_anew_under_the_same_times_and_sizes_change_the_key(tmp_path):
    def write(seed):
        for number in range(100):
            file = tmp_path / f"{number}.bmp"
            file.write_bytes(encoded(seed + number, "BMP"))
            os.utime(file, (0, 0))
        return of_paths(*(tmp_path / f"{number}.bmp" for number in range(100)))

    before = key_of_images(write(0))
    assert key_of_images(write(0)) == before
    assert key_of_images(write(1000)) != before


def test_an_archive_that_changes_changes_the_key(tmp_path):
    archive = tmp_path / "photos.zip"
    rows = of_paths(f"zip://0.png::{archive}")

    def key(seed):
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("0.png", encoded(seed))
        return key_of_images(rows)

    assert key(0) != key(1)


def test_what_is_in_memory_counts_by_its_content(dataset):
    """The fingerprint of `datasets` says how rows came about, whatever a function has read or drawn."""
    seed = 0

    def draw(row):
        return {"image": {"path": None, "bytes": encoded(seed)}}

    def rows():
        plain = Dataset.from_dict({"number": [1, 2]})
        drawn = plain.map(lambda row: draw(row), new_fingerprint="the same").cast_column("image", Image())
        drawn._fingerprint = "the same"
        return drawn

    before = key_of_images(rows())
    assert key_of_images(rows()) == before
    both = key_of_images(concatenate_datasets([dataset.select_columns("image"), rows().select_columns("image")]))
    seed = 1
    assert key_of_images(rows()) != before
    assert (
        key_of_images(concatenate_datasets([dataset.select_columns("image"), rows().select_columns("image")])) != both
    )


def test_rows_chosen_by_something_outside_count(dataset):
    chosen = [dataset.select(indices) for indices in ([0, 1, 5], [0, 1, 6])]
    for rows in chosen:
        rows._fingerprint = "the same"
    assert key_of_images(chosen[0]) != key_of_images(chosen[1])


def test_files_of_tables_are_not_read_through(dataset, tmp_path, monkeypatch):
    """They may be large, and `datasets` writes them anew where they change."""
    dataset.save_to_disk(tmp_path / "rows")
    rows = Dataset.load_from_disk(str(tmp_path / "rows"))
    both = concatenate_datasets([rows, rows])
    before = key_of_images(rows), key_of_images(both)
    monkeypatch.setattr("starft_hf.data.fingerprint._rows_digest", lambda *_: pytest.fail("was read"))
    assert (key_of_images(rows), key_of_images(both)) == before


def test_weights_and_settings_are_in_the_key(clip):
    before = model_fingerprint(clip)
    assert model_fingerprint(clip) == before
    clip.config._name_or_path = "elsewhere"
    assert model_fingerprint(clip) == before
    assert model_fingerprint(clip.to(torch.bfloat16)) != before
    clip = clip.float()
    clip.config.vision_config.layer_norm_eps *= 2
    assert model_fingerprint(clip) != before
    clip.config.vision_config.layer_norm_eps /= 2
    with torch.no_grad():
        clip.text_projection.weight[0, 0] += 1e-6
    assert model_fingerprint(clip) != before


class Mirrored(CLIPModel):
    """Another forward with the same weights."""

    def get_image_features(self, pixel_values, **kwargs):
        return super().get_image_features(pixel_values.flip(-1), **kwargs)


def test_code_is_in_the_key(clip):
    keys = {model_fingerprint(clip), model_fingerprint(Mirrored.from_pretrained(TINY_CLIP))}
    for layer in clip.vision_model.encoder.layers:
        layer.mlp.activation_fn = nn.ReLU()
    assert len(keys | {model_fingerprint(clip)}) == 3


def defined(body, monkeypatch):
    """A class of a user's own, under one name, as edited between two runs."""
    source = f"class Own(nn.Linear):\n    def forward(self, rows):\n        return {body}\n"
    scope = {"nn": nn, "__name__": "script"}
    exec(source, scope)
    monkeypatch.setattr("starft_hf.data.fingerprint.inspect.getsource", lambda kind: source)
    return scope["Own"]


def test_the_source_of_a_class_of_ones_own_is_in_the_key(clip, monkeypatch):
    keys = set()
    for body in ("2 * rows", "3 * rows"):
        clip.visual_projection.__class__ = defined(body, monkeypatch)
        keys.add(model_fingerprint(clip))
    assert len(keys) == 2


@pytest.mark.parametrize("peft_config", ["lora", "lora-vision"])
def test_with_an_adapter_the_key_is_that_of_the_model(clip, peft_config):
    before = model_fingerprint(clip)
    assert model_fingerprint(with_adapter(clip, peft_config)) == before


def test_texts_and_their_tokenizer_are_in_the_key(encoder):
    def key():
        return texts_fingerprint(encoder, ["an owl", "a fern"])

    before = key()
    encoder.encode_texts(["other padding and truncation"])
    assert key() == before
    assert texts_fingerprint(encoder, ["a fern", "an owl"]) != before
    assert texts_fingerprint(encoder, ["an owla", " fern"]) != before
    tokenizer = encoder.encode_texts.tokenizer
    for name, value in (("pad_token", "a</w>"), ("padding_side", "left"), ("truncation_side", "left")):
        kept = getattr(tokenizer, name)
        setattr(tokenizer, name, value)
        assert key() != before, name
        setattr(tokenizer, name, kept)
    assert key() == before


def test_preprocessing_and_its_code_are_in_the_key(processor):
    given = processor.image_processor
    changed = type(given)(**given.to_dict() | {"image_mean": [0.1, 0.2, 0.3]})

    class Flipped(type(given)):
        def __call__(self, images, **kwargs):
            return super().__call__([image.transpose(0) for image in images], **kwargs)

    Flipped.__name__ = type(given).__name__
    keys = [preprocessing_fingerprint(one) for one in (given, changed, Flipped(**given.to_dict()))]
    assert len(set(keys)) == 3
