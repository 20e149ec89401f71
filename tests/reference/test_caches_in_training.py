"""What is cached of the reference changes the cost of a run and nothing else."""

import copy

import pytest
import torch

from starft_hf import SpuriosityPool, StarFTTrainer
from starft_hf.models.adapters import with_adapter
from starft_hf.objectives.regularizers import _REGISTRY, Regularizer
from starft_hf.reference import live
from tests.support.tiny import make_dataset


def train(clip, processor, args, dataset, **kwargs):
    trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, processing_class=processor, **kwargs)
    trainer.train()
    return trainer


def assert_same_run(left, right, atol):
    for one, other in zip(left.state.log_history[:-1], right.state.log_history[:-1], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=atol or 1e-15)
    for name, value in left.model.state_dict().items():
        torch.testing.assert_close(value, right.model.state_dict()[name], rtol=0, atol=atol, msg=name)


@pytest.fixture
def settings():
    return {"crop_scale": None, "reg_schedule": "constant", "reg_weight": 5.0, "max_steps": 5}


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("regularizer", ["star", "kl"])
def test_every_cache_gives_the_same_weights(clip, processor, config, dataset, settings, base_loss, regularizer):
    clip = clip.double()
    settings |= {"base_loss": base_loss, "regularizer": regularizer}
    runs = {
        cache: train(clip, processor, config(reference_cache=cache, **settings), dataset)
        for cache in ("none", "text", "full", "auto")
    }
    assert [runs[cache].reference.info.kind for cache in runs] == [
        "frozen copy",
        "cached texts",
        "cached texts and images",
        "cached texts and images",
    ]
    for cache in ("text", "full", "auto"):
        assert_same_run(runs["none"], runs[cache], atol=1e-9)


def test_a_second_run_computes_no_reference_forward_and_holds_no_reference_weights(
    clip, processor, config, dataset, settings, monkeypatch
):
    first = train(clip, processor, config(**settings), dataset)
    assert first.reference.info.forwards > 0

    def forward(self, compute):
        raise AssertionError("the reference ran")

    monkeypatch.setattr(live.FrozenReference, "_run", forward)
    second = train(clip, processor, config(**settings), dataset)
    assert second.reference.live is None
    assert second.reference.info.forwards == 0
    assert_same_run(first, second, atol=0)


def test_draws_are_the_same_with_and_without_a_cache(clip, processor, config, dataset, settings):
    """The order of the samples comes from the global generator, which building a cache must not advance."""
    seen = []
    for cache in ("none", "full"):
        args = config(reference_cache=cache, dataloader_num_workers=2, **settings)
        trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, processing_class=processor)
        losses = trainer.training_losses
        batches = []

        def record(model, batch, *args, losses=losses, batches=batches, **kwargs):
            batches.append((batch["sample_index"].tolist(), batch["spurious_ids"].tolist()))
            return losses(model, batch, *args, **kwargs)

        trainer.training_losses = record
        trainer.train()
        seen.append(batches)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 5


TEMPLATES = ["{} in the snow.", "{} at night."]
CHANGES = {
    "weights of templates change nothing": ({}, {"spuriosity": SpuriosityPool(TEMPLATES, weights=[1, 3])}, 0),
    "a template for some classes": ({}, {"spuriosity": SpuriosityPool(TEMPLATES, classes=[["owl"], None])}, 1),
    "another seed changes nothing": ({"seed": 7}, {}, 0),
    "another pool": ({}, {"spuriosity": ["{} at noon."]}, 1),
    "another caption template": ({"caption_template": "a drawing of a {}."}, {}, 1),
    "other classes": ({"class_names": ["blue", "snow", "sky", "harbor"]}, {}, 1),
    "another dtype of the cache": ({"reference_cache_dtype": "float16"}, {}, 1),
    "another dtype of the reference": ({"reference_dtype": "bfloat16"}, {}, 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_cache_depends_on_misses_it(clip, processor, config, dataset, settings, change):
    changed, kwargs, expected = CHANGES[change]
    first = train(clip, processor, config(**settings), dataset, spuriosity=TEMPLATES)
    again = train(clip, processor, config(**settings | changed), dataset, **{"spuriosity": TEMPLATES} | kwargs)
    assert first.reference.info.forwards == 2
    assert again.reference.info.forwards == expected


def test_other_weights_and_other_images_miss_the_cache(clip, processor, config, dataset, settings):
    train(clip, processor, config(**settings), dataset, spuriosity=TEMPLATES)
    images = train(clip, processor, config(**settings), make_dataset(25, seed=3), spuriosity=TEMPLATES)
    assert images.reference.info.forwards == 1
    with torch.no_grad():
        clip.visual_projection.weight[0, 0] += 1
    assert train(clip, processor, config(**settings), dataset, spuriosity=TEMPLATES).reference.info.forwards == 2


def test_a_damaged_cache_is_rebuilt(clip, processor, config, dataset, settings, tmp_path, caplog):
    first = train(clip, processor, config(**settings), dataset)
    for file in (tmp_path / "features").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    second = train(clip, processor, config(**settings), dataset)
    assert len([record for record in caplog.records if "rebuilt" in record.getMessage()]) == 2
    assert second.reference.info.forwards == first.reference.info.forwards
    assert_same_run(first, second, atol=0)


def test_training_continues_where_the_cache_cannot_be_written(clip, processor, config, dataset, settings, caplog):
    written = train(clip, processor, config(**settings), dataset)
    unwritable = config(**settings, reference_cache_dir="/dev/null/features")
    kept = train(clip, processor, unwritable, dataset)
    assert "could not be written" in caplog.text
    assert kept.reference.info.where == "memory"
    assert_same_run(written, kept, atol=0)


def test_too_many_captions_are_encoded_as_they_come(clip, processor, config, dataset, settings, caplog):
    clip = clip.double()
    lazy = train(clip, processor, config(**settings, reference_text_cache_gib=0), dataset)
    assert "Captions are encoded when a batch first needs them" in caplog.text
    assert lazy.reference.live is not None
    assert_same_run(train(clip, processor, config(**settings), dataset), lazy, atol=1e-9)


def test_without_a_limit_all_captions_are_encoded_in_advance(clip, processor, config, dataset, settings):
    unlimited = train(clip, processor, config(**settings, reference_text_cache_gib=float("inf")), dataset)
    assert unlimited.reference.info.captions_per_second > 0
    assert_same_run(train(clip, processor, config(**settings), dataset), unlimited, atol=0)
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="reference_text_cache_gib is "):
            config(reference_text_cache_gib=wrong)


@pytest.mark.parametrize("cache", ["none", "text", "full"])
def test_a_regularizer_of_the_weights_has_them(clip, processor, config, dataset, settings, cache, monkeypatch):
    def both(inputs):
        return sum((tuned - start).square().sum() for tuned, start in inputs.weight_pairs())

    regularizer = Regularizer("distance", both, columns="spurious", needs_weights=True)
    monkeypatch.setitem(_REGISTRY, "distance", regularizer)
    trainer = train(clip, processor, config(**settings, regularizer="distance", reference_cache=cache), dataset)
    losses = [entry["reg_loss"] for entry in trainer.state.log_history[:-1]]
    assert losses[0] == 0
    assert losses[-1] > 0


def test_narrower_features_go_with_wider_models(clip, processor, config, dataset, settings):
    clip = clip.double()
    stored = train(
        clip, processor, config(**settings, reference_cache="full", reference_cache_dtype="float32"), dataset
    )
    assert_same_run(train(clip, processor, config(**settings, reference_cache="none"), dataset), stored, atol=1e-4)


def test_a_reference_with_an_adapter_is_refused(clip, processor, config, dataset):
    """It would be switched off, and the reference be the model under it."""
    adapted = with_adapter(copy.deepcopy(clip), "lora")
    with pytest.raises(ValueError, match="merge_and_unload"):
        StarFTTrainer(clip, config(), dataset, processing_class=processor, reference_model=adapted)
    merged = adapted.merge_and_unload()
    StarFTTrainer(clip, config(), dataset, processing_class=processor, reference_model=merged)


def test_images_are_not_cached_where_they_are_random_or_the_run_is_short(clip, processor, config, dataset):
    def kind(dataset=dataset, image_transform=None, **settings):
        trainer = StarFTTrainer(
            clip, config(**settings), dataset, processing_class=processor, image_transform=image_transform
        )
        return trainer.reference.info.kind

    assert kind(max_steps=3) == "cached texts"
    assert kind(max_steps=3, crop_scale=None) == "cached texts and images"
    assert kind(max_steps=2, crop_scale=None) == "cached texts"
    assert kind(max_steps=3, crop_scale=None, image_transform=lambda image: image) == "cached texts"
    assert kind(dataset.with_transform(lambda rows: rows), max_steps=3, crop_scale=None) == "cached texts"
    assert kind(list(dataset), class_names=["owl", "truck", "violin", "fern"], crop_scale=None) == "cached texts"


REFUSALS = {
    "random crops": ({}, {}, "cropped or transformed at random"),
    "a transform": ({"crop_scale": None}, {"image_transform": lambda image: image}, "pass no image_transform"),
    "captions from a column": ({"crop_scale": None, "caption_column": "note"}, {}, "captions come from a column"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_full_is_refused_with_the_reason(clip, processor, config, dataset, case):
    settings, kwargs, reason = REFUSALS[case]
    with pytest.raises(ValueError, match=reason):
        StarFTTrainer(clip, config(reference_cache="full", **settings), dataset, processing_class=processor, **kwargs)


def test_full_is_refused_for_data_without_a_fingerprint(clip, processor, config, dataset):
    args = config(reference_cache="full", crop_scale=None)
    with pytest.raises(ValueError, match="of type IterableDataset, has no fingerprint"):
        StarFTTrainer(clip, args, dataset.to_iterable_dataset(), processing_class=processor)
    with pytest.raises(ValueError, match="the dataset has a transform"):
        StarFTTrainer(clip, args, dataset.with_transform(lambda rows: rows), processing_class=processor)


def test_a_cache_folder_that_is_a_file_is_refused(clip, processor, config, dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="which is a file"):
        StarFTTrainer(clip, config(reference_cache_dir=str(tmp_path / "file")), dataset, processing_class=processor)


def test_an_evaluation_in_half_precision_does_not_round_what_is_cached(clip, processor, config, dataset):
    caches = []
    for evaluated in (False, True):
        args = config(bf16=True, reference_cache_dir=f"{config().output_dir}/{evaluated}")
        given = {"processing_class": processor, "peft_config": "lora", "eval_dataset": make_dataset(8)}
        trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, **given)
        if evaluated:
            trainer.evaluate()
        trainer.setup.prepare(args.device)
        caches.append(trainer.reference.texts._embeds)
    torch.testing.assert_close(*caches, rtol=0, atol=0)
