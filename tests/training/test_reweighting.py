"""`reweight="attribution"`: weights against their definition, and what they are told and used for."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Value

from starft_hf import StarFTTrainer
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_PHRASES, BACKGROUND_TEMPLATES, Task, make_split
from starft_hf.demo.world import CLASS_NAMES as DEMO_CLASSES
from starft_hf.reference import live as live_module
from starft_hf.training.reweighting import attribution_weights, joint_distribution
from tests.support.runs import assert_same_weights, steps
from tests.support.tiny import CLASS_NAMES, make_dataset


def drawn(images=60, classes=3, attributes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    return torch.rand(images, attributes, generator=generator).softmax(-1), labels


def by_hand(q, labels, num_classes):
    """w_i = sum_t q_i(t) p(y_i) p(t) / J[y_i, t]"""
    count = len(labels)
    p_y = [sum(int(y == label) for y in labels) / count for label in range(num_classes)]
    p_t = [sum(float(row[t]) for row in q) / count for t in range(q.shape[1])]

    def joint(label, t):
        return sum(float(row[t]) for row, y in zip(q, labels, strict=True) if y == label) / count

    return [
        sum(float(row[t]) * p_y[y] * p_t[t] / joint(int(y), t) for t in range(q.shape[1]))
        for row, y in zip(q, labels, strict=True)
    ]


def test_weights_are_their_definition():
    q, labels = drawn()
    expected = torch.tensor(by_hand(q, labels, 3), dtype=torch.float64)
    weights, found = attribution_weights([q], labels, 3)
    torch.testing.assert_close(weights, expected / expected.mean(), rtol=0, atol=1e-6)
    assert weights.mean().item() == pytest.approx(1, abs=1e-12)
    assert found.effective_sample_size == pytest.approx((weights.sum() ** 2 / (weights**2).sum()).item())
    assert found.images == 60


def test_certain_attributes_are_made_independent_of_the_labels():
    labels = torch.tensor([0] * 20 + [1] * 20)
    shown = torch.tensor([0] * 18 + [1] * 2 + [1] * 17 + [0] * 3)
    q = torch.nn.functional.one_hot(shown).double()
    weights, found = attribution_weights([q], labels, 2)
    after = joint_distribution(q, labels, 2, weights)
    torch.testing.assert_close(after, after.sum(1, keepdim=True) * after.sum(0, keepdim=True))
    assert found.left == pytest.approx(0, abs=1e-12)
    assert found.residual == pytest.approx(0, abs=1e-12)
    counts = np.array([[18, 2], [3, 17]]) / 40
    expected = (counts * np.log(counts / counts.sum(1, keepdims=True) / counts.sum(0, keepdims=True))).sum()
    assert found.mutual_information == pytest.approx(expected)


def test_weights_are_clipped_before_they_are_brought_to_a_mean_of_1():
    labels = torch.tensor([0] * 100 + [1] * 100)
    shown = torch.tensor([0] * 99 + [1] + [1] * 99 + [0])
    q = torch.nn.functional.one_hot(shown).double()
    free, _ = attribution_weights([q], labels, 2, clip=1e9)
    assert (free.max() / free.min()).item() == pytest.approx(99)
    weights, found = attribution_weights([q], labels, 2, clip=10.0)
    assert (weights.max() / weights.min()).item() == pytest.approx(10 / (0.5 / 0.99), rel=1e-6)
    assert weights.mean().item() == pytest.approx(1)
    assert found.residual > 0.3


def test_where_no_minority_exists_the_residual_says_so():
    labels = torch.tensor([0] * 50 + [1] * 50)
    weights, found = attribution_weights([torch.nn.functional.one_hot(labels).double()], labels, 2)
    assert torch.equal(weights, torch.ones(100, dtype=torch.float64))
    assert found.residual == pytest.approx(1)
    assert found.effective_sample_size == pytest.approx(100)


def test_what_chance_gives_is_no_residual():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=generator)
    shown = torch.nn.functional.one_hot(torch.randint(4, (300,), generator=generator)).double()
    _, found = attribution_weights([shown], labels, 3)
    assert 0 < found.mutual_information < found.by_chance
    assert found.residual == 0


@pytest.mark.parametrize(("classes", "images", "attributes"), [(100, 2000, 21), (8, 64, 15)])
def test_many_classes_and_few_images_hide_no_residual(classes, images, attributes):
    """Two of many attributes occur, each with one half of the classes, and no image is an exception."""
    labels = torch.arange(images) % classes
    shown = torch.nn.functional.one_hot(1 + labels % 2, attributes).double()
    for unsure in (0.0, 0.2):
        _, found = attribution_weights([(1 - unsure) * shown + unsure / attributes], labels, classes)
        assert found.by_chance < found.mutual_information / 2
        assert found.residual > 0.7


def test_one_class_has_nothing_in_common_with_anything():
    shown = torch.rand(30, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    weights, found = attribution_weights([shown], torch.zeros(30, dtype=torch.long), 1)
    torch.testing.assert_close(weights, torch.ones(30, dtype=torch.float64))
    assert found.residual == 0


def test_what_two_aspects_say_alike_is_made_up_for_once():
    labels = torch.tensor([0] * 20 + [1] * 20)
    shown = torch.nn.functional.one_hot(torch.tensor([0] * 18 + [1] * 2 + [1] * 17 + [0] * 3)).double()
    one, _ = attribution_weights([shown], labels, 2)
    two, found = attribution_weights([shown, shown], labels, 2)
    torch.testing.assert_close(two, one)
    assert found.left == pytest.approx(0, abs=1e-9)


def test_two_aspects_that_differ_are_both_made_up_for():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(2, (400,), generator=generator)
    aspects = []
    for share in (0.9, 0.75):
        same = torch.rand(400, generator=generator) < share
        aspects.append(torch.nn.functional.one_hot(torch.where(same, labels, 1 - labels)).double())
    _, found = attribution_weights(aspects, labels, 2)
    assert found.mutual_information > 0.4
    assert found.residual < 0.1


def test_no_aspect_gives_equal_weights():
    weights, found = attribution_weights([], torch.tensor([0, 1, 1]), 2)
    assert torch.equal(weights, torch.ones(3, dtype=torch.float64))
    assert (found.mutual_information, found.residual, found.attributes) == (0, 0, 0)


# In a run


@pytest.fixture
def demo(config):
    """A trainer on the demo's pictures."""

    def make(dataset=None, spuriosity=BACKGROUND_TEMPLATES, model=MODEL_FOLDER, **settings):
        settings = {"reweight": "attribution", "learning_rate": 1e-4, "crop_scale": None} | settings
        dataset = make_split("train") if dataset is None else dataset
        pool = spuriosity if isinstance(spuriosity, str) else list(spuriosity)
        return StarFTTrainer(model, config(**settings), dataset, spuriosity=pool)

    return make


def weights_of(trainer):
    trainer.sample_weights.prepare(torch.device("cpu"))
    return trainer.sample_weights(torch.arange(len(trainer.train_dataset)))


def minority(dataset):
    return torch.tensor([group.split()[0] != group.split()[-1] for group in dataset["group"]])


def test_images_that_are_not_at_home_weigh_more(demo, caplog):
    trainer = demo()
    weights = weights_of(trainer)
    away = minority(make_split("train"))
    # By true groups it would be 10 and 0.53.
    assert weights[away].mean() > 8
    assert weights[~away].mean() < 0.7
    assert weights.mean().item() == pytest.approx(1, abs=1e-6)
    found = trainer.sample_weights.diagnostics
    assert 0.4 < found.mutual_information < 0.5
    assert found.residual < 0.1
    assert 80 < found.effective_sample_size < 150
    assert [record.getMessage() for record in caplog.records if "attribution" in record.getMessage()] == [
        f"reweight='attribution': {found}."
    ]


def test_data_without_a_shortcut_is_weighted_alike(demo):
    trainer = demo(make_split("train", correlation=0.5))
    assert weights_of(trainer).std() < 0.1
    assert trainer.sample_weights.diagnostics.residual == 0


def test_without_a_minority_it_warns_and_the_alignment_stays(demo, caplog):
    trainer = demo(
        make_split("train", correlation=1.0),
        regularizer="conditional",
        reg_weight=3.0,
        reg_schedule="constant",
        learning_rate=1e-3,
        warmup_steps=0,
    )
    trainer.train()
    assert trainer.sample_weights.diagnostics.residual > 0.9
    assert "cannot replace a regularizer" in caplog.text
    assert all(entry["reg_weight"] == 3 for entry in steps(trainer))
    assert steps(trainer)[-1]["reg_loss"] > 1e-3


def test_it_warns_with_many_classes_and_few_images(demo, caplog):
    rows = make_split("train", correlation=1.0, size=128, task=Task(DEMO_CLASSES[:8]))
    trainer = demo(rows, spuriosity="background")
    weights_of(trainer)
    assert trainer.sample_weights.diagnostics.residual > 0.5
    assert "cannot replace a regularizer" in caplog.text


def test_a_residual_of_next_to_nothing_is_not_a_missing_minority(clip, processor, config, dataset, caplog):
    """The reference, an untrained model, sees nearly the same in all images, and weights cannot change that."""
    settings = {"reweight": "attribution", "crop_scale": None}
    pool = list(BACKGROUND_TEMPLATES)
    trainer = StarFTTrainer(clip, config(**settings), dataset, processing_class=processor, spuriosity=pool)
    weights_of(trainer)
    found = trainer.sample_weights.diagnostics
    assert found.by_chance < found.mutual_information < 0.05
    assert found.residual > 0.3
    assert "cannot replace a regularizer" not in caplog.text


def test_a_pool_that_names_nothing_is_warned_of(demo, caplog):
    trainer = demo(spuriosity=["{}."])
    assert torch.equal(weights_of(trainer), torch.ones(480))
    assert "cannot tell any template of the pool from the plain caption" in caplog.text


def test_a_pool_that_misses_the_bias_hardly_changes_the_weights(demo, caplog):
    seen = (*BACKGROUND_PHRASES["grass"], *BACKGROUND_PHRASES["water"])
    trainer = demo(spuriosity=[text for text in BACKGROUND_TEMPLATES if not any(phrase in text for phrase in seen)])
    weights_of(trainer)
    found = trainer.sample_weights.diagnostics
    assert found.mutual_information < 0.1
    assert found.effective_sample_size > 0.9 * found.images


def test_weights_belong_to_samples_whatever_the_order(demo):
    first = demo()
    dataset = first.train_dataset.dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(1))
    second = demo(make_split("train").select(order.tolist()))
    torch.testing.assert_close(weights_of(second), weights_of(first)[order], rtol=0, atol=1e-5)


def test_the_second_run_computes_no_reference(demo, monkeypatch):
    first = weights_of(demo())

    def forward(self, compute):
        raise AssertionError("the reference ran")

    monkeypatch.setattr(live_module.FrozenReference, "_run", forward)
    assert torch.equal(weights_of(demo()), first)
    # They are the features that a full cache holds, too: here only the spurious captions are missing.
    with pytest.raises(AssertionError, match="the reference ran"):
        weights_of(demo(reference_cache="none"))


def test_nothing_is_written_without_a_cache(demo, tmp_path):
    torch.testing.assert_close(weights_of(demo(reference_cache="none")), weights_of(demo()), rtol=0, atol=1e-5)
    other = tmp_path / "other"
    weights_of(demo(reference_cache="none", reference_cache_dir=str(other)))
    assert not other.exists()


def test_random_crops_do_not_change_the_weights(demo):
    assert torch.equal(weights_of(demo(crop_scale=(0.5, 1.0))), weights_of(demo()))


def test_any_data_set_with_an_order_will_do(clip, processor, config, dataset):
    def weights(data, **settings):
        args = config(reweight="attribution", class_names=CLASS_NAMES, **settings)
        return weights_of(StarFTTrainer(clip, args, data, processing_class=processor))

    expected = weights(dataset)
    assert expected.std() > 1e-4
    torch.testing.assert_close(weights(list(dataset)), expected, rtol=0, atol=1e-6)
    names = [{"image": row["image"], "label": CLASS_NAMES[row["label"]]} for row in dataset]
    torch.testing.assert_close(weights(names), expected, rtol=0, atol=1e-6)
    transformed = dataset.with_transform(lambda rows: rows)
    torch.testing.assert_close(weights(transformed), expected, rtol=0, atol=1e-6)


def test_generators_are_left_alone(demo):
    torch.manual_seed(5)
    demo(reweight="none")
    expected = torch.rand(1)
    torch.manual_seed(5)
    weights_of(demo(dataloader_num_workers=1))
    assert torch.rand(1) == expected


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
def test_equal_weights_change_nothing(clip, processor, config, dataset, base_loss, monkeypatch):
    def run(reweight):
        args = config(reweight=reweight, base_loss=base_loss)
        trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, processing_class=processor)
        if trainer.sample_weights is not None:
            trainer.sample_weights._compute = lambda *args: None
            trainer.sample_weights._weights = torch.ones(len(dataset))
        trainer.train()
        return trainer

    assert_same_weights(run("attribution"), run("none"))


def test_an_adapter_is_weighted_by_the_model_without_it(clip, processor, config, dataset):
    args = config(reweight="attribution", regularizer="none")
    plain = weights_of(StarFTTrainer(copy.deepcopy(clip), args, dataset, processing_class=processor))
    trainer = StarFTTrainer(copy.deepcopy(clip), args, dataset, processing_class=processor, peft_config="lora")
    with torch.no_grad():
        for name, value in trainer.model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    torch.testing.assert_close(weights_of(trainer), plain, rtol=0, atol=1e-5)
    trainer.train()
    assert len(steps(trainer)) == 3


def test_the_reference_is_let_go(demo):
    trainer = demo(regularizer="none", max_steps=1)
    trainer.train()
    assert trainer.reference is None
    assert trainer.sample_weights._live is None


def test_the_pool_and_the_settings_are_on_record(demo, tmp_path):
    trainer = demo(regularizer="none", max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    record = json.loads((tmp_path / "model" / "starft.json").read_text())
    assert record["config"]["reweight"] == "attribution"
    assert len(record["pool"]["templates"]) == len(BACKGROUND_TEMPLATES)
    assert record["sample_weights"] == asdict(trainer.sample_weights.diagnostics)
    assert record["reg_weight"] is None
    size = f"{trainer.sample_weights.diagnostics.effective_sample_size:,.0f} of 480"
    trainer.create_model_card()
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert f"| effective sample size under reweight | {size} |" in card


def test_labels_may_be_strings_and_the_largest_weight_is_a_setting(demo):
    rows = make_split("train")
    names = rows.features["label"].names
    named = rows.cast_column("label", Value("int64")).map(lambda row: {"name": names[row["label"]]})
    named = named.remove_columns("label").rename_column("name", "label")
    expected = weights_of(demo(rows))
    torch.testing.assert_close(weights_of(demo(named, class_names=names)), expected)
    clipped = weights_of(demo(rows, reweight_clip=1.5))
    assert clipped.max() / clipped.min() < expected.max() / expected.min()


def test_what_it_cannot_do_is_refused(clip, processor, config, dataset):
    build = lambda data, **settings: StarFTTrainer(  # noqa: E731
        clip, config(reweight="attribution", **settings), data, processing_class=processor
    )
    with pytest.raises(ValueError, match="the training set is an iterable dataset"):
        build(dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match="it has no labels"):
        build(dataset.remove_columns("label"), caption_column="note", regularizer="kl")
    with pytest.raises(ValueError, match="Did you mean 'attribution'"):
        config(reweight="attributions")
    with pytest.raises(ValueError, match="finite number of at least 1"):
        config(reweight_clip=0.5)


def test_two_classes_are_enough(clip, processor, config):
    two = make_dataset(class_names=CLASS_NAMES[:2])
    args = config(reweight="attribution", regularizer="conditional")
    trainer = StarFTTrainer(clip, args, two, processing_class=processor)
    trainer.train()
    assert len(steps(trainer)) == 3
