import pytest
from datasets import ClassLabel, Value

from starft_hf import StarFTTrainer
from starft_hf.evaluation import evaluate_zero_shot
from tests.support.tiny import CLASS_NAMES, make_dataset


FINE = ["blue owl", "striped owl", "truck", "violin", "fern"]
MAPPING = [(0, 1), (2,), (3,), (4,)]


def test_labels_keep_the_names_the_data_set_gives_them(clip, processor, dataset):
    settings = {"class_names": FINE, "class_mapping": MAPPING, "progress": False}
    result = evaluate_zero_shot(clip, processor, dataset, **settings)
    assert sorted(result.group_accuracies) == sorted(CLASS_NAMES)
    unnamed = evaluate_zero_shot(clip, processor, dataset.cast_column("label", Value("int64")), **settings)
    assert "blue owl" in unnamed.group_accuracies
    assert unnamed.loss == result.loss


def test_a_mapping_of_other_labels_is_an_error(clip, processor, dataset):
    with pytest.raises(ValueError, match="class_mapping is for 3 labels, but column 'label' has 4 classes"):
        evaluate_zero_shot(clip, processor, dataset, class_names=FINE, class_mapping=MAPPING[:3])


def test_training_shares_weight_the_groups(clip, processor, dataset):
    shares = {"left": 0.9, "right": 0.1}
    result = evaluate_zero_shot(clip, processor, dataset, group_column="group", training_shares=shares, progress=False)
    expected = sum(share * result.group_accuracies[group] for group, share in shares.items())
    assert result.group_adjusted_accuracy == pytest.approx(expected)


PART = [(2,), (0, 3)]


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
def test_evaluation_sets_of_a_trainer_are_mapped_by_name(clip, processor, config, dataset, base_loss):
    sets = {"all": dataset, "mapped": make_dataset(class_names=["instrument", "alive"], seed=3)}
    trainer = StarFTTrainer(
        clip,
        config(base_loss=base_loss, learning_rate=1e-2, max_steps=3),
        dataset,
        sets,
        processing_class=processor,
        class_mapping={"mapped": PART},
    )
    trainer.train()
    metrics = trainer.evaluate()
    settings = {"class_names": CLASS_NAMES, "head": trainer.head, "progress": False}
    alone = evaluate_zero_shot(trainer.model, processor, sets["mapped"], class_mapping=PART, **settings)
    assert metrics["eval_mapped_loss"] == pytest.approx(alone.loss, rel=1e-5)
    assert trainer.evaluation_results["mapped"].group_accuracies == alone.group_accuracies
    assert sorted(alone.group_accuracies) == ["alive", "instrument"]
    whole = evaluate_zero_shot(trainer.model, processor, dataset, **settings)
    assert metrics["eval_all_loss"] == pytest.approx(whole.loss, rel=1e-5)


def test_a_single_evaluation_set_is_mapped(clip, processor, config, dataset):
    single = make_dataset(class_names=["instrument", "alive"], seed=3).cast_column("label", Value("int64"))
    settings = {"processing_class": processor, "class_mapping": PART}
    trainer = StarFTTrainer(clip, config(regularizer="none"), dataset, single, **settings)
    trainer.evaluate()
    assert set(trainer.evaluation_results["eval"].group_accuracies) == {"owl", "violin"}


@pytest.mark.parametrize(
    ("mapping", "match"),
    [
        ({"shfted": PART}, "unknown evaluation set 'shfted'. Did you mean 'shifted'"),
        (PART, "pass class_mapping as a dictionary"),
        ({"shifted": [(0,)]}, "class_mapping is for 1 labels, but column 'label' has 4 classes"),
        ({"shifted": [(0,), (1,), (2,), (4,)]}, "index 4 for label 3, but there are 4 class names"),
        ({"shifted": [(0,), (1,), (2,), (True,)]}, r"has \(True,\) for label 3"),
    ],
)
def test_mappings_of_a_trainer_that_do_not_fit_are_refused_at_once(clip, processor, config, dataset, mapping, match):
    clip.register_forward_pre_hook(lambda *_: pytest.fail("there was a forward"))
    sets = {"plain": dataset, "shifted": dataset}
    with pytest.raises(ValueError, match=match):
        StarFTTrainer(clip, config(), dataset, sets, processing_class=processor, class_mapping=mapping)


def test_an_evaluation_set_keeps_its_classes_where_class_names_are_those_of_training(clip, processor, config, dataset):
    """Training labels without names need class_names; these do not rename the labels of other sets."""
    train = dataset.cast_column("label", Value("int64"))
    features = dataset.features.copy()
    features["label"] = ClassLabel(names=["truck", "owl"])
    part = dataset.filter(lambda label: label < 2, input_columns="label").cast(features)
    trainer = StarFTTrainer(
        clip, config(class_names=CLASS_NAMES), train, {"part": part, "all": train}, processing_class=processor
    )
    metrics = trainer.evaluate()
    alone = evaluate_zero_shot(clip, processor, part, progress=False)
    assert trainer.evaluation_results["part"].group_accuracies == alone.group_accuracies
    assert metrics["eval_part_loss"] == pytest.approx(alone.loss)
    assert set(trainer.evaluation_results["all"].group_accuracies) == set(CLASS_NAMES)
    # In training, too, labels are matched by name.
    trainer = StarFTTrainer(clip, config(class_names=CLASS_NAMES), part, processing_class=processor)
    assert trainer.class_names == tuple(CLASS_NAMES)
    found = [CLASS_NAMES[trainer.train_dataset[row]["label"]] for row in range(4)]
    assert found == [part.features["label"].int2str(label) for label in part["label"][:4]]
