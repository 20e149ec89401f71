"""`regularizer="conditional"`: one template per batch, the classes under it as columns."""

import copy

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from starft_hf import SpuriosityPool, StarFTTrainer
from starft_hf.data.collator import StarFTCollator
from starft_hf.models.adapters import is_adapted
from tests.support.runs import assert_same_weights, steps
from tests.support.tiny import CLASS_NAMES, MANY_NAMES, StopAt, make_dataset


POOL = ["{} in the snow.", "{} at night.", "{} on a beach.", "a striped {class}."]
MANY = MANY_NAMES[:12]


@pytest.fixture
def trained(clip, processor, config):
    """Trains a copy of the model; the trainer remembers every batch of the step."""

    def train(dataset, spuriosity=POOL, resume=None, start=None, peft_config=None, callbacks=None, **settings):
        settings = {"regularizer": "conditional", "reg_schedule": "constant", "reg_weight": 5.0} | settings
        torch.manual_seed(0)
        trainer = StarFTTrainer(
            copy.deepcopy(start if start is not None else clip),
            config(**settings),
            dataset,
            processing_class=processor,
            spuriosity=spuriosity,
            peft_config=peft_config,
            callbacks=callbacks,
        )
        losses, trainer.batches = trainer.training_losses, []

        def record(model, batch, reg_weight):
            trainer.batches.append(batch)
            return losses(model, batch, reg_weight)

        trainer.training_losses = record
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return train


def templates(trainer):
    """The spurious template of every batch, which all of its columns share."""
    found = [
        {trainer.bank.parts_of(index)[2] for index in batch["spurious_ids"].tolist()} for batch in trainer.batches
    ]
    assert all(len(drawn) == 1 for drawn in found)
    return [drawn.pop() for drawn in found]


def test_a_batch_has_all_classes_under_one_template(trained, dataset):
    trainer = trained(dataset, max_steps=12)
    assert all(batch["column_labels"].tolist() == [0, 1, 2, 3] for batch in trainer.batches)
    assert len(set(templates(trainer))) > 1
    assert steps(trainer)[-1]["reg_loss"] > 1e-4
    # Of captions and columns, each distinct text is there once.
    for batch in trainer.batches:
        assert len(batch["text_rows"]) == 4 + len(set(batch["labels"].tolist()))


def test_templates_depend_on_seed_and_step_alone(trained, dataset):
    drawn = templates(trained(dataset, max_steps=12))
    assert templates(trained(dataset, max_steps=12, dataloader_num_workers=2)) == drawn
    assert templates(trained(dataset, max_steps=12, per_device_train_batch_size=3)) == drawn
    assert templates(trained(dataset, max_steps=12, reference_cache="none")) == drawn
    assert templates(trained(dataset.to_iterable_dataset(), max_steps=12)) == drawn
    assert templates(trained(dataset, max_steps=12, seed=1)) != drawn


def test_accumulated_batches_have_templates_of_their_own(trained, dataset):
    trainer = trained(dataset, max_steps=6, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    drawn = templates(trainer)
    assert len(drawn) == 12
    assert drawn[::2] != drawn[1::2]
    columns = trainer.setup.candidates.classes
    assert drawn == [columns.templates(step, part)[1] for step in range(6) for part in range(2)]


def test_two_runs_of_one_trainer_draw_the_same(trained, dataset):
    trainer = trained(dataset, max_steps=4)
    first, trainer.batches[:] = templates(trainer), []
    trainer.train()
    assert templates(trainer) == first


def test_several_caption_templates_are_drawn_for_the_batch(trained, dataset):
    trainer = trained(dataset, max_steps=12, caption_template=["a photo of a {}.", "a drawing of a {}."])
    drawn = [{trainer.bank.parts_of(index)[1] for index in b["spurious_ids"].tolist()} for b in trainer.batches]
    assert all(len(own) == 1 for own in drawn)
    assert {0, 1} == set().union(*drawn)


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
def test_cached_equals_recomputed(trained, dataset, clip, base_loss):
    start = clip.double()
    settings = {"base_loss": base_loss, "max_steps": 4, "crop_scale": None, "start": start}
    live = trained(dataset, reference_cache="none", **settings)
    for cache in ({"reference_cache": "full"}, {"reference_text_cache_gib": 0}):
        assert_same_weights(live, trained(dataset, **settings, **cache), rtol=0, atol=1e-9)


@pytest.mark.parametrize("stop", [2, 3], ids=["middle of an epoch", "end of an epoch"])
@pytest.mark.parametrize("more", [{}, {"reweight": "attribution", "base_loss": "cross_entropy"}], ids=str)
def test_a_resumed_run_is_the_uninterrupted_run(trained, dataset, tmp_path, stop, more):
    settings = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": stop, **more}
    settings |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    whole = trained(dataset, output_dir=str(tmp_path / "whole"), **settings)
    trained(dataset, output_dir=str(tmp_path / "cut"), callbacks=[StopAt(stop)], **settings)
    resumed = trained(dataset, output_dir=str(tmp_path / "cut"), resume=True, **settings)
    assert_same_weights(whole, resumed)
    assert templates(resumed) == templates(whole)[2 * stop :]


def test_a_step_that_is_cut_short_begins_anew(trained, dataset, clip, processor, config):
    """As after a batch that did not fit into memory: what was accumulated before does not count."""

    class FailOnce(TrainerCallback):
        failed = False

        def on_substep_end(self, *args, **kwargs):
            if not self.failed:
                self.failed = True
                raise MemoryError

    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_steps": 2}
    drawn = templates(trained(dataset, **settings))
    callback = FailOnce()
    with pytest.raises(MemoryError):
        trained(dataset, callbacks=[callback], **settings)
    assert callback.failed
    assert templates(trained(dataset, callbacks=[callback], **settings)) == drawn


# More classes than are compared


def test_the_classes_of_the_batch_are_always_compared(trained):
    dataset = make_dataset(48, class_names=MANY)
    trainer = trained(dataset, max_steps=12, reg_max_classes=9, per_device_train_batch_size=4)
    others = []
    for batch in trainer.batches:
        own, columns = set(batch["labels"].tolist()), batch["column_labels"].tolist()
        assert len(columns) == len(set(columns)) == 9
        assert own <= set(columns)
        others.append(set(columns) - own)
    # Every other class has its turn.
    assert set().union(*others) == set(range(12))
    again = trained(dataset, max_steps=12, reg_max_classes=9, per_device_train_batch_size=4)
    for left, right in zip(trainer.batches, again.batches, strict=True):
        assert torch.equal(left["column_labels"], right["column_labels"])


def test_a_batch_of_more_classes_than_the_limit_is_compared_with_its_own(trained):
    trainer = trained(make_dataset(24, class_names=MANY), reg_max_classes=2)
    for batch in trainer.batches:
        assert batch["column_labels"].tolist() == sorted(set(batch["labels"].tolist()))


def test_filling_brings_no_classes(trained):
    trainer = trained(make_dataset(24, class_names=MANY), max_steps=1)
    columns = trainer.setup.candidates.classes
    columns.limit = 2
    batch = {"labels": torch.tensor([3, 5, 7]), "pixel_values": torch.zeros(1)}
    assert columns(batch, 0, 0)["column_labels"].tolist() == [3, 5, 7]
    batch["valid"] = torch.tensor([True, True, False])
    assert columns(batch, 0, 0)["column_labels"].tolist() == [3, 5]


# Pools


def test_weights_say_how_often_a_template_is_shared(trained, dataset):
    pool = SpuriosityPool(POOL, weights=[1, 1, 30, 1])
    drawn = templates(trained(dataset, spuriosity=pool, max_steps=40, learning_rate=0.0))
    assert np.mean(np.array(drawn) == 2) > 0.75


def test_a_restricted_template_has_columns_of_its_classes_only(trained, dataset):
    pool = SpuriosityPool(POOL, classes=[["owl", "fern"], ["truck"], None, None])
    trainer = trained(dataset, spuriosity=pool, max_steps=24, learning_rate=0.0)
    for template, batch in zip(templates(trainer), trainer.batches, strict=True):
        assert batch["column_labels"].tolist() == ([0, 3] if template == 0 else [0, 1, 2, 3])
    # A single class cannot be compared.
    assert set(templates(trainer)) == {0, 2, 3}


def test_pools_without_anything_to_compare_are_refused(clip, processor, config, dataset):
    pool = SpuriosityPool(POOL, classes=[[name] for name in CLASS_NAMES])
    with pytest.raises(ValueError, match="no template of the spuriosity pool may be drawn for two classes"):
        StarFTTrainer(clip, config(regularizer="conditional"), dataset, processing_class=processor, spuriosity=pool)


# Together with the rest


def test_adapters_train_with_it(trained, dataset, clip):
    start = clip.double()
    trainer = trained(dataset, start=start, peft_config="lora", max_steps=4, learning_rate=1e-2)
    live = trained(dataset, start=start, peft_config="lora", max_steps=4, learning_rate=1e-2, reference_cache="none")
    assert is_adapted(trainer.model)
    assert live.reference.info.kind == "adapter switched off"
    assert steps(trainer)[-1]["reg_loss"] > 1e-6
    for left, right in zip(steps(trainer), steps(live), strict=True):
        assert left["reg_loss"] == pytest.approx(right["reg_loss"], abs=1e-9)


def test_what_it_needs_is_asked_for(clip, processor, config, dataset):
    captions = dataset.remove_columns("label")
    with pytest.raises(ValueError, match=r"compares classes.*class\s+names"):
        StarFTTrainer(
            clip, config(regularizer="conditional", caption_column="note"), captions, processing_class=processor
        )
    with pytest.raises(ValueError, match="must be an integer of at least 2, because classes"):
        config(reg_max_classes=1)


def test_a_collator_that_encodes_captions_by_itself_is_told(clip, processor, config, dataset):
    trainer = StarFTTrainer(clip, config(regularizer="conditional"), dataset, processing_class=processor)
    trainer = StarFTTrainer(
        clip,
        config(regularizer="conditional"),
        dataset,
        processing_class=processor,
        data_collator=StarFTCollator(trainer.encoder.encode_texts, True, False),
    )
    with pytest.raises(ValueError, match="encode_captions=False"):
        trainer.train()
