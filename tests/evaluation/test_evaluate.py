import copy
import gc
import pickle
import weakref

import pytest
import torch
from datasets import DatasetDict, concatenate_datasets
from transformers.utils import logging

from starft_hf import StarFTTrainer, evaluate_zero_shot
from starft_hf.evaluation.loop import ClassifierEvaluation
from starft_hf.evaluation.results import EvaluationResult
from starft_hf.models.adapters import with_adapter
from starft_hf.models.heads import head_from_weights
from tests.support.families import family
from tests.support.tiny import CLASS_NAMES, TINY_CLIP, make_dataset


def predictions(clip, processor, dataset, names):
    inputs = processor(
        images=dataset["image"][:],
        text=[f"a photo of a {name}." for name in names],
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return clip(**inputs).logits_per_image


@pytest.mark.parametrize(("batch_size", "num_workers"), [(5, 0), (64, 2)])
def test_it_is_the_models_own_forward(clip, processor, dataset, batch_size, num_workers):
    logits = predictions(clip, processor, dataset, CLASS_NAMES)
    labels = torch.tensor(dataset["label"])
    hits = (logits.argmax(-1) == labels).double()
    result = evaluate_zero_shot(
        clip,
        processor,
        dataset,
        group_column="group",
        batch_size=batch_size,
        num_workers=num_workers,
        keep_mistakes=5,
        progress=False,
    )
    assert result.accuracy == pytest.approx(hits.mean().item())
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    groups = torch.tensor(dataset["group"])
    expected = {name: hits[groups == index].mean().item() for index, name in enumerate(["left", "right"])}
    assert result.group_accuracies == pytest.approx(expected)
    assert result.worst_group_accuracy == min(expected.values())
    assert sum(result.group_sizes.values()) == sum(part.count for part in result.bins) == 24

    worst = [row for row in range(24) if ["left", "right"][groups[row]] == result.worst_group and not hits[row]]
    confidence = logits.softmax(-1).amax(-1)
    surest = sorted(worst, key=lambda row: -confidence[row])[:5]
    assert [mistake.sample for mistake in result.mistakes] == surest
    assert result.mistakes[0].confidence == pytest.approx(confidence[surest[0]].item(), rel=1e-5)
    assert result.mistakes[0].label == CLASS_NAMES[labels[surest[0]]]


def test_a_path_is_enough_and_the_model_stays_as_it_is(dataset, clip, processor):
    clip.train()
    before = copy.deepcopy(clip.state_dict())
    result = evaluate_zero_shot(clip, processor, dataset, progress=False)
    assert evaluate_zero_shot(TINY_CLIP, None, dataset, progress=False) == result
    assert clip.training
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert set(result.group_accuracies) == set(CLASS_NAMES)


def test_results_survive_json(clip, processor, dataset):
    import json

    result = evaluate_zero_shot(clip, processor, dataset, keep_mistakes=3, progress=False)
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result
    assert result.gap == pytest.approx(result.accuracy - min(result.group_accuracies.values()))


def test_classes_that_stand_for_several_count_their_best(clip, processor):
    """As ObjectNet's, each of which is several of ImageNet's."""
    names = [*CLASS_NAMES, "blue truck", "striped violin"]
    dataset = make_dataset(class_names=["harbor", "sky"])
    mapping = [[1, 4], [2, 5]]
    logits = predictions(clip, processor, dataset, names)
    best = torch.stack([logits[:, classes].amax(-1) for classes in mapping], -1)
    expected = (best.argmax(-1) == torch.tensor(dataset["label"])).double().mean().item()
    result = evaluate_zero_shot(clip, processor, dataset, class_names=names, class_mapping=mapping, progress=False)
    assert result.accuracy == pytest.approx(expected)


def test_a_linear_head_takes_the_place_of_the_texts(clip, processor, dataset):
    head = head_from_weights(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))
    pixels = processor.image_processor(images=dataset["image"][:], return_tensors="pt")
    with torch.no_grad():
        embeds = torch.nn.functional.normalize(clip.get_image_features(**pixels).pooler_output, dim=-1)
        expected = (head(embeds).argmax(-1) == torch.tensor(dataset["label"])).double().mean().item()
    assert evaluate_zero_shot(clip, processor, dataset, head=head, progress=False).accuracy == pytest.approx(expected)


def test_bfloat16_is_near(clip, processor, dataset):
    whole, half = (
        evaluate_zero_shot(clip, processor, dataset, dtype=dtype, progress=False) for dtype in (None, torch.bfloat16)
    )
    assert half.loss == pytest.approx(whole.loss, rel=0.05)
    assert half.loss != whole.loss


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"class_names": ["a", "b"]}, "holds the label"),
        ({"class_names": ["a", "b", "a", "c"]}, "class_names contains duplicates: 'a'"),
        ({"label_column": "species"}, "no column 'species'"),
        ({"group_column": "place"}, "no column 'place'"),
        ({"templates": "a photo"}, "needs exactly one"),
        ({"class_mapping": [[0], [9]], "class_names": ["a", "b"]}, "index 9 for label 1"),
        ({"class_mapping": [[0], []], "class_names": ["a", "b"]}, "no class for label 1"),
        ({"class_mapping": [[0], [1]]}, "pass class_names as well"),
        ({"class_mapping": [0, 1], "class_names": ["a", "b"]}, "has 0 for label 0; pass a list of indices"),
        ({"class_mapping": {0: [0]}, "class_names": ["a", "b"]}, "is a dictionary"),
        ({"class_names": "owls"}, "is the string 'owls'"),
        ({"class_names": [1, 2, 3, 4]}, "has 1 for label 0"),
        ({"class_names": ["a", " ", "b", "c"]}, "has ' ' for label 1"),
        ({"class_names": []}, "class_names is empty"),
        ({"head": torch.nn.Linear(32, 5)}, "the head has 5 outputs, but there are 4 class names"),
        ({"head": torch.nn.ReLU()}, "head is a ReLU"),
        ({"training_shares": {"owl": -1.0}}, r"training_shares\['owl'\] is -1.0"),
        ({"training_shares": [0.5, 0.5]}, "training_shares is a list"),
        ({"training_shares": dict.fromkeys(CLASS_NAMES, 0)}, "at least one group a share above 0"),
        ({"training_shares": {"owl": "most"}}, r"training_shares\['owl'\] is 'most'"),
        (
            {"training_shares": dict.fromkeys(["Owl", "truck", "violin", "fern"], 0.25)},
            r"rows have the groups \['owl'\], which training_shares does not name",
        ),
        (
            {"training_shares": {"left": 0.5, "right": 0.4, "top": 0.1}, "group_column": "group"},
            r"training_shares names the groups \['top'\], which have no rows",
        ),
        ({"group_column": ["group", "place"]}, "no column 'place'"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16'; pass torch.bfloat16"),
        ({"dtype": torch.float32}, "dtype is torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_forward(clip, processor, dataset, settings, match):
    clip.forward = None
    with pytest.raises(ValueError, match=match):
        evaluate_zero_shot(clip, processor, dataset, **settings)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([None, 1, 2, 3], r"column 'label' has a row without a value; .*row\['label'\] is not None"),
        ([1, 2, 3, 4], r"the label 4, but .*if labels start at 1, lower them: dataset\.map.*row\['label'\] - 1"),
        ([0, 1, 2, 4], "holds the label 4"),
        ([0.0, 1.0, 2.0, 1.5], "has a row with 1.5 instead of the index or the name"),
        ([0.0, 1.0, 2.0, float("nan")], "has a row with nan"),
        (["owl", "truck", "fern", None], "column 'label' has a row without a value"),
    ],
    ids=str,
)
def test_labels_that_are_none_of_the_classes_are_refused_before_the_first_forward(
    clip, processor, config, dataset, labels, match
):
    clip.register_forward_pre_hook(lambda *_: pytest.fail("there was a forward"))
    rows = dataset.select(range(4)).remove_columns("label").add_column("label", labels)
    with pytest.raises(ValueError, match=match):
        evaluate_zero_shot(clip, processor, rows, class_names=CLASS_NAMES)
    with pytest.raises(ValueError, match=match):
        StarFTTrainer(clip, config(regularizer="none"), dataset, rows, processing_class=processor)


def test_a_head_may_be_without_bias(clip, processor, dataset):
    head = torch.nn.Linear(32, 4)
    with torch.no_grad():
        head.bias.zero_()
    bare = torch.nn.Linear(32, 4, bias=False)
    bare.weight = head.weight
    results = [evaluate_zero_shot(clip, processor, dataset, head=each, progress=False) for each in (head, bare)]
    assert results[0] == results[1]


def test_streams_and_other_models_are_refused(clip, processor, dataset):
    with pytest.raises(ValueError, match="is an iterable dataset, which cannot be split"):
        evaluate_zero_shot(clip, processor, dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match="is not a dual encoder"):
        evaluate_zero_shot(clip.vision_model, processor, dataset)
    for several in ({"test": dataset}, DatasetDict(test=dataset)):
        with pytest.raises(ValueError, match=r"dataset is a dictionary with \['test'\]"):
            evaluate_zero_shot(clip, processor, several)


def test_names_of_any_script_are_fine():
    clip, processor = family("clip")
    names = ["フクロウ", "crème brûlée", "🦉", "x" * 40]
    dataset = make_dataset(class_names=names).remove_columns("group").add_column("group", ["Ä", "日本"] * 12)
    result = evaluate_zero_shot(clip, processor, dataset, group_column="group", keep_mistakes=3, progress=False)
    assert result.group_sizes == {"Ä": 12, "日本": 12}
    assert set(result.group_accuracies) == {"Ä", "日本"}
    logits = predictions(clip, processor, dataset, names)
    expected = (logits.argmax(-1) == torch.tensor(dataset["label"])).double().mean().item()
    assert result.accuracy == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_dtypes_are_evaluated_as_they_are(clip, processor, dataset, dtype):
    whole = evaluate_zero_shot(clip, processor, dataset, progress=False)
    other = evaluate_zero_shot(clip.to(dtype), processor, dataset, progress=False)
    assert other.loss == pytest.approx(whole.loss, rel=1e-5 if dtype == torch.float64 else 0.05)
    head = torch.nn.Linear(32, 4)
    losses = [evaluate_zero_shot(clip, processor, dataset, head=head, progress=False).loss for _ in range(2)]
    assert losses[0] == losses[1] > 0
    assert head.weight.dtype == torch.float32


def test_an_adapter_is_evaluated_as_the_model_that_it_makes(clip, processor, dataset, tmp_path):
    adapted = with_adapter(copy.deepcopy(clip), "lora")
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(0), std=0.5)
    adapted.save_pretrained(tmp_path)
    result = evaluate_zero_shot(adapted, processor, dataset, progress=False)
    assert result.loss != pytest.approx(evaluate_zero_shot(clip, processor, dataset, progress=False).loss)
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = str(TINY_CLIP)
    config.save_pretrained(tmp_path)
    assert evaluate_zero_shot(tmp_path, None, dataset, progress=False).loss == pytest.approx(result.loss)
    merged = adapted.merge_and_unload()
    assert evaluate_zero_shot(merged, processor, dataset, progress=False).loss == pytest.approx(result.loss, rel=1e-5)


def test_neither_images_nor_prompts_are_kept(clip, processor, dataset, monkeypatch):
    """What an evaluation holds at its end grows with the classes alone."""
    held = []
    ended = ClassifierEvaluation.result

    def result(self, *args):
        kept = [len(mistakes) for mistakes in self.mistakes._by_group.values()]
        held.append((len(pickle.dumps(vars(self.counts))), max(kept), tuple(self._weights.shape)))
        return ended(self, *args)

    monkeypatch.setattr(ClassifierEvaluation, "result", result)
    for copies in (1, 8):
        many = concatenate_datasets([dataset] * copies)
        templates = [f"{number} photos of {{}}." for number in range(copies * 10)]
        evaluate_zero_shot(clip, processor, many, templates=templates, keep_mistakes=2, progress=False)
    (one, *_), (eight, kept, shape) = held
    assert eight < 1.1 * one
    assert kept <= 2
    assert shape == (4, 32)


def test_a_head_without_a_class_says_that_names_take_its_place(clip, processor, config, dataset, caplog):
    other = make_dataset(class_names=["owl", "cat"])
    args = config(base_loss="cross_entropy", regularizer="none")
    trainer = StarFTTrainer(clip, args, dataset, {"other": other}, processing_class=processor)
    logger = logging.get_logger("starft_hf.models.heads")
    logger.addHandler(caplog.handler)
    try:
        logger.warning_once.cache_clear()
        metrics = trainer.evaluate()
    finally:
        logger.removeHandler(caplog.handler)
    assert "The linear head has no class 'cat'" in caplog.text
    assert metrics["eval_other_loss"] == pytest.approx(evaluate_zero_shot(clip, processor, other, progress=False).loss)


def test_evaluation_sets_may_have_part_of_the_classes(clip, processor, config, dataset):
    part = make_dataset(class_names=["violin", "owl"])
    for base_loss in ("contrastive", "cross_entropy"):
        trainer = StarFTTrainer(
            clip,
            config(base_loss=base_loss),
            dataset,
            {"all": dataset, "part": part},
            processing_class=processor,
        )
        metrics = trainer.evaluate()
        alone = evaluate_zero_shot(clip, processor, part, progress=False)
        # The head starts as the zero-shot classifier.
        assert metrics["eval_part_accuracy"] == pytest.approx(alone.accuracy)
        assert set(trainer.evaluation_results) == {"all", "part"}
        assert trainer.evaluation_results["part"].accuracy == metrics["eval_part_accuracy"]


def test_the_best_checkpoint_is_that_of_the_best_worst_group(clip, processor, config, dataset):
    args = config(
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        learning_rate=0.1,
        group_column="group",
        load_best_model_at_end=True,
        metric_for_best_model="eval_shifted_worst_group_accuracy",
        greater_is_better=True,
    )
    sets = {"plain": dataset, "shifted": make_dataset(seed=4)}
    trainer = StarFTTrainer(clip, args, dataset, sets, processing_class=processor)
    trainer.train()
    seen = [
        entry["eval_shifted_worst_group_accuracy"]
        for entry in trainer.state.log_history
        if "eval_shifted_worst_group_accuracy" in entry
    ]
    assert len(seen) == 4
    assert trainer.state.best_metric == max(seen)
    assert trainer.evaluate()["eval_shifted_worst_group_accuracy"] == pytest.approx(max(seen))


def test_the_best_calibration_error_is_the_lowest(config):
    def better(**settings):
        return config(**settings).greater_is_better

    assert better(metric_for_best_model="eval_shifted_ece") is False
    assert better(metric_for_best_model="eval_shifted_loss") is False
    assert better(metric_for_best_model="eval_shifted_worst_group_accuracy") is True
    assert better(metric_for_best_model="eval_ece", greater_is_better=True) is True


@pytest.mark.parametrize("metric", ["eval_accuracy_Greece", "eval_shifted_accuracy_gloss", "map_fleece", "f1_floss"])
def test_a_group_may_be_called_nearly_like_a_loss(config, metric):
    assert config(metric_for_best_model=metric).greater_is_better is True
    assert config(metric_for_best_model="eval_own_gloss").greater_is_better is False
    with pytest.raises(ValueError, match="may be a figure of a group or the loss of an evaluation set; pass greater_"):
        config(metric_for_best_model=f"{metric}_loss")


@pytest.mark.parametrize("metric", ["eval_worst_group_accuracy", "eval_shited_accuracy", "loss"])
def test_a_best_metric_of_no_evaluation_set_is_refused_at_once(clip, processor, config, dataset, metric):
    sets = {"plain": dataset, "shifted": dataset}
    with pytest.raises(
        ValueError, match=rf"is '{metric}', which is not a metric of any of the evaluation sets .*eval_plain_worst"
    ):
        StarFTTrainer(clip, config(metric_for_best_model=metric), dataset, sets, processing_class=processor)
    for name in ("shifted_accuracy", "eval_plain_made_by_compute_metrics"):
        StarFTTrainer(clip, config(metric_for_best_model=name), dataset, sets, processing_class=processor)


def test_retention_sets_measure_forgetting(clip, processor, config, dataset):
    probe = make_dataset(class_names=["kettle", "harbor", "sky"], seed=8)
    before = evaluate_zero_shot(clip, processor, probe, progress=False)
    trainer = StarFTTrainer(
        clip,
        config(learning_rate=0.1, group_column="group"),
        dataset,
        processing_class=processor,
        zero_shot_probe={"kitchen": probe},
    )
    trainer.train()
    after = evaluate_zero_shot(trainer.model, processor, probe, progress=False)
    assert trainer.retention["kitchen"].before == before
    assert trainer.retention["kitchen"].after == after
    logged = next(entry for entry in trainer.state.log_history if "kitchen_accuracy" in entry)
    assert logged["kitchen_accuracy_change"] == pytest.approx(after.accuracy - before.accuracy)
    with pytest.raises(ValueError, match="zero_shot_probe 'probe' has no column 'label'"):
        StarFTTrainer(
            clip, config(), dataset, processing_class=processor, zero_shot_probe=probe.remove_columns("label")
        )
    with pytest.raises(ValueError, match="zero_shot_probe 'probe' is an iterable dataset"):
        StarFTTrainer(clip, config(), dataset, processing_class=processor, zero_shot_probe=probe.to_iterable_dataset())


def test_data_that_was_evaluated_is_released(clip, processor, config, dataset):
    trainer = StarFTTrainer(clip, config(), dataset, processing_class=processor)
    released = []
    for _ in range(3):
        rows = make_dataset(8)
        released.append(weakref.ref(rows))
        trainer.evaluate(rows)
        del rows
    gc.collect()
    # The last one is what callbacks see.
    assert [each() is None for each in released[:2]] == [True, True]
