import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage

from starft_hf.data.columns import ImageColumns
from starft_hf.data.examples import ImageExampleMaker, IndexedExamples
from starft_hf.data.images import ImagePreprocessor
from starft_hf.models import DualEncoder
from starft_hf.reference.fingerprint import (
    images_fingerprint,
    model_fingerprint,
    preprocessing_fingerprint,
    texts_fingerprint,
)
from starft_hf.reference.images import CachedImages
from starft_hf.reference.live import FrozenReference
from starft_hf.reference.store import FeatureStore
from tests.conftest import make_dataset


CPU = torch.device("cpu")


def images_of(dataset, encoder):
    columns = ImageColumns("image", None, None, None, None)
    return IndexedExamples(dataset, ImageExampleMaker(columns, ImagePreprocessor(encoder.image_processor)))


@pytest.fixture
def encoder(clip, processor):
    return DualEncoder.of(clip, processor)


def cached(clip, encoder, dataset, folder, **settings):
    images = CachedImages(images_of(dataset, encoder), FeatureStore(folder), progress=False, **settings)
    live = FrozenReference(clip, encoder)
    images.prepare(live, CPU)
    return images, live.forwards


def recomputed(clip, processor, dataset, samples):
    pictures = [dataset[int(sample)]["image"] for sample in samples]
    pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeds = clip.get_image_features(pixels.to(clip.dtype)).pooler_output
    return embeds / embeds.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (7, 0), (64, 2)])
def test_features_are_those_of_the_model_whatever_the_order(
    clip, encoder, processor, dataset, tmp_path, batch_size, num_workers
):
    clip = clip.double()
    images, _ = cached(clip, encoder, dataset, tmp_path, batch_size=batch_size, num_workers=num_workers)
    samples = torch.tensor([5, 0, 23, 5, 11])
    torch.testing.assert_close(images.rows(samples), recomputed(clip, processor, dataset, samples), rtol=0, atol=1e-12)


def test_a_second_run_computes_nothing(clip, encoder, dataset, tmp_path):
    first, forwards = cached(clip, encoder, dataset, tmp_path, batch_size=10)
    assert forwards == 3
    second, forwards = cached(clip, encoder, dataset, tmp_path, batch_size=5)
    assert forwards == 0
    assert torch.equal(first.rows(torch.arange(24)), second.rows(torch.arange(24)))
    assert second.size == (24, 24 * 32 * 4)
    assert first.file == second.file
    assert second.file.is_file()


def test_half_precision_halves_the_file_within_its_documented_error(clip, encoder, dataset, tmp_path):
    whole, _ = cached(clip, encoder, dataset, tmp_path)
    half, _ = cached(clip, encoder, dataset, tmp_path, dtype=torch.float16)
    samples = torch.arange(24)
    assert half.size[1] == whole.size[1] // 2
    assert half.rows(samples).dtype == torch.float32
    error = (half.rows(samples) - whole.rows(samples)).abs().max()
    assert 0 < error <= 2**-12


def key_of_images(dataset):
    return images_fingerprint(dataset, "image")


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
    PILImage.new("RGB", (4, 4)).save(file)
    files = Dataset.from_dict({"image": [str(file)]}).cast_column("image", Image())
    before = key_of_images(files)
    PILImage.fromarray(np.random.default_rng(0).integers(0, 255, (4, 4, 3)).astype(np.uint8)).save(file)
    assert key_of_images(files) != before


def test_weights_settings_texts_and_preprocessing_are_in_their_keys(clip, encoder, processor):
    before = model_fingerprint(clip.config, clip.state_dict())
    assert model_fingerprint(clip.config, clip.state_dict()) == before
    clip.config._name_or_path = "elsewhere"
    assert model_fingerprint(clip.config, clip.state_dict()) == before
    assert model_fingerprint(clip.config, clip.to(torch.bfloat16).state_dict()) != before
    clip = clip.float()
    clip.config.vision_config.layer_norm_eps *= 2
    assert model_fingerprint(clip.config, clip.state_dict()) != before
    clip.config.vision_config.layer_norm_eps /= 2
    with torch.no_grad():
        clip.text_projection.weight[0, 0] += 1e-6
    assert model_fingerprint(clip.config, clip.state_dict()) != before

    texts = texts_fingerprint(encoder, ["an owl", "a fern"])
    encoder.encode_texts(["other padding and truncation"])
    assert texts_fingerprint(encoder, ["an owl", "a fern"]) == texts
    assert texts_fingerprint(encoder, ["a fern", "an owl"]) != texts
    assert texts_fingerprint(encoder, ["an owla", " fern"]) != texts

    preprocessing = preprocessing_fingerprint(processor.image_processor)
    changed = type(processor.image_processor)(**processor.image_processor.to_dict() | {"image_mean": [0.1, 0.2, 0.3]})
    assert preprocessing_fingerprint(changed) != preprocessing
