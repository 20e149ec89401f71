"""What is random about a sample depends on the seed, the epoch and the sample, and on nothing else."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from starft_hf import StarFTTrainer
from starft_hf.data.images import ImagePreprocessor, random_crop_box
from starft_hf.data.randomness import Draw, global_generators_from, sample_generator
from starft_hf.models.pixels import byte_values
from tests.support.tiny import make_dataset, token_ids


POOL = [f"{{}} number {word}." for word in ("one", "two", "three", "four", "five")]


def draws(clip, processor, config, dataset, *, epoch=0, **settings):
    """Every sample's pixels and texts in one epoch, keyed by the sample."""
    collected = {}

    class Recorder(StarFTTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            texts = self.processing_class.tokenizer.batch_decode(token_ids(inputs), skip_special_tokens=True)
            if self.epoch.value == epoch:
                for row, sample in enumerate(inputs["sample_index"].tolist()):
                    caption, spurious = texts[inputs["caption_rows"][row]], texts[inputs["spurious_rows"][row]]
                    collected[sample] = (inputs["pixel_values"][row].clone(), caption, spurious)
            return super().compute_loss(model, inputs, *args, **kwargs)

    settings = {"max_steps": -1, "num_train_epochs": epoch + 1, "seed": 3} | settings
    settings["caption_template"] = ["a photo of a {}.", "a picture of the {}."]
    trainer = Recorder(clip, config(**settings), dataset, processing_class=processor, spuriosity=POOL)
    trainer.train()
    return collected


def same(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(left[key][0], right[key][0]) and left[key][1:] == right[key][1:] for key in left
    )


@pytest.fixture
def reference_draws(clip, processor, config, dataset):
    return draws(clip, processor, config, dataset)


@pytest.mark.parametrize(
    "settings",
    [
        {"per_device_train_batch_size": 5},
        {"dataloader_num_workers": 2},
        {"reference_cache": "none"},
        {"train_sampling_strategy": "sequential"},
        {"gradient_accumulation_steps": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_do_not_change_a_sample(clip, processor, config, dataset, reference_draws, settings):
    assert len(reference_draws) == len(dataset)
    assert same(draws(clip, processor, config, dataset, **settings), reference_draws)


def test_epochs_and_seeds_do_change_a_sample(clip, processor, config, dataset, reference_draws):
    assert not same(draws(clip, processor, config, dataset, seed=4), reference_draws)
    assert not same(draws(clip, processor, config, dataset, epoch=1), reference_draws)


def test_persistent_workers_see_the_epoch_move(clip, processor, config, dataset, monkeypatch):
    # Seconds that a worker is waited for at the end.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    settings = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    in_workers = draws(clip, processor, config, dataset, epoch=1, **settings)
    assert same(in_workers, draws(clip, processor, config, dataset, epoch=1))


def test_a_sample_of_an_iterable_dataset_does_not_depend_on_workers(clip, processor, config, dataset):
    iterable = dataset.to_iterable_dataset(num_shards=2)
    # With more, a worker would be in its second pass.
    alone = draws(clip, processor, config, iterable, max_steps=2)
    with_workers = draws(clip, processor, config, iterable, max_steps=2, dataloader_num_workers=2)
    common = alone.keys() & with_workers.keys()
    assert len(common) > len(dataset) / 4
    assert same({key: alone[key] for key in common}, {key: with_workers[key] for key in common})


def test_a_crop_does_not_move_when_templates_are_drawn_from_a_longer_pool():
    crop = sample_generator(0, 0, 7, Draw.TRANSFORM).random(4)
    sample_generator(0, 0, 7, Draw.SPURIOUS_TEMPLATE).integers(100, size=50)
    assert np.array_equal(sample_generator(0, 0, 7, Draw.TRANSFORM).random(4), crop)


def test_a_transform_with_global_generators_is_keyed_and_leaves_them_alone():
    def transform(image):
        noise = random.random() + np.random.rand() + torch.rand(3, 16, 16)
        return noise

    preprocess = ImagePreprocessor(None, transform=transform)
    image = Image.new("RGB", (20, 20))
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = preprocess([image], [sample_generator(0, 0, 1, Draw.TRANSFORM)])
    again = preprocess([image], [sample_generator(0, 0, 1, Draw.TRANSFORM)])
    other = preprocess([image], [sample_generator(0, 0, 2, Draw.TRANSFORM)])
    assert torch.equal(first[0]["pixel_values"], again[0]["pixel_values"])
    assert not torch.equal(first[0]["pixel_values"], other[0]["pixel_values"])
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


def test_generators_are_restored_when_a_transform_fails():
    state = torch.get_rng_state()

    def fail():
        with global_generators_from(np.random.default_rng(0)):
            torch.rand(1)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (7, 300), (1, 1)])
def test_crop_boxes_lie_inside_and_keep_the_share_of_the_area(size):
    for seed in range(50):
        left, top, right, bottom = random_crop_box(*size, (0.5, 0.8), np.random.default_rng(seed))
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        share = (right - left) * (bottom - top) / (size[0] * size[1])
        assert 0.45 < share < 0.85 or share == 1


def test_no_crop_is_the_processors_own_preprocessing(processor):
    image = make_dataset(1)[0]["image"]
    expected = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"][0]
    made = ImagePreprocessor(processor.image_processor)([image])[0]["pixel_values"]
    assert torch.equal(byte_values(processor.image_processor)(made), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "I;16"])
def test_images_of_every_mode_are_read_as_rgb(processor, mode):
    pixels = ImagePreprocessor(processor.image_processor)([Image.new(mode, (30, 20))])[0]["pixel_values"]
    assert pixels.shape == (3, 16, 16)
    assert torch.isfinite(pixels).all()
