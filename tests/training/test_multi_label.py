"""Runs on images of several classes: the loss, the bias, what is saved, and what is refused."""

import copy

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import BCEWithLogitsLoss
from transformers import CLIPModel

from starft_hf import StarFTTrainer, compare, evaluate_zero_shot, load, predict, repair, tune
from starft_hf.hub.publishable import publishable
from starft_hf.models.sigmoid import add_bias, matched_bias
from starft_hf.report import Run
from starft_hf.training import setup
from starft_hf.weights import interpolate_checkpoints
from tests.support.families import family
from tests.support.multi_label import make_multi_label_dataset
from tests.support.runs import assert_same_weights, steps
from tests.support.tiny import CLASS_NAMES, TINY_CLIP


MULTI = {"base_loss": "multi_label"}


@pytest.fixture
def trainer(config, processor):
    """Makes a multi-label trainer of a fresh tiny CLIP."""

    def make(train=None, evaluation=None, model=None, dtype=torch.float32, peft_config=None, **settings):
        model = CLIPModel.from_pretrained(TINY_CLIP, dtype=dtype) if model is None else model
        train = make_multi_label_dataset() if train is None else train
        torch.manual_seed(0)
        args = config(**{**MULTI, "warmup_steps": 0, **settings})
        return StarFTTrainer(model, args, train, evaluation, processing_class=processor, peft_config=peft_config)

    return make


def logits_by_hand(model, processor, images):
    """Of every image and class, as transformers computes similarities, and the bias."""
    texts = processor.tokenizer([f"a photo of a {name}." for name in CLASS_NAMES], return_tensors="pt", padding=True)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(pixel_values=pixels.to(model.dtype), **texts).logits_per_image + model.logit_bias


def test_the_loss_is_torchs_binary_cross_entropy_of_all_classes(trainer, processor):
    dataset = make_multi_label_dataset(8)
    run = trainer(dataset, dtype=torch.float64, crop_scale=None, max_steps=1, regularizer="none")
    targets = torch.zeros(8, 4, dtype=torch.float64)
    for row, classes in enumerate(dataset["label"]):
        targets[row, classes] = 1
    logits = logits_by_hand(run.model, processor, dataset[:]["image"])
    # The bias starts where the mean probability is the share of positive targets, plus half a target of either kind.
    assert logits.sigmoid().mean().item() == pytest.approx((targets.sum().item() + 0.5) / 33, abs=1e-9)
    start = run.model.logit_bias.item()
    run.train()
    assert steps(run)[0]["loss"] == pytest.approx(BCEWithLogitsLoss()(logits, targets).item(), abs=1e-12)
    assert run.model.logit_bias.item() != start


def test_metrics_are_of_what_predict_returns_and_smoothing_changes_the_loss_only(trainer):
    evaluation = make_multi_label_dataset(20, seed=1)
    run = trainer(evaluation=evaluation, group_column="group", regularizer="none", label_smoothing_factor=0.2)
    plain = trainer(regularizer="none")
    for one in (run, plain):
        one.train()
    assert steps(run)[0]["loss"] != pytest.approx(steps(plain)[0]["loss"])
    metrics, output = run.evaluate(), run.predict(evaluation)
    predictions, labels = output.predictions, output.label_ids
    assert metrics["eval_map"] == pytest.approx(average_precision_score(labels, predictions, average="macro"))
    assert metrics["eval_micro_f1"] == pytest.approx(f1_score(labels, predictions >= 0, average="micro"))
    assert {"eval_worst_class_ap", "eval_worst_class_f1", "eval_worst_group_map", "eval_map_left"} <= metrics.keys()
    assert not [name for name in metrics if "accuracy" in name or "ece" in name]


@pytest.mark.parametrize(
    "changes",
    [
        {"mini_batch_size": 3},
        {"reference_cache": "none"},
        {"reference_cache": "full"},
        {"dataloader_num_workers": 2},
    ],
    ids=str,
)
def test_chunks_caches_and_workers_change_nothing(trainer, changes):
    shared = {"dtype": torch.float64, "crop_scale": None, "caption_template": ["a photo of a {}.", "a blue {}."]}
    one, other = trainer(**shared), trainer(**shared, **changes)
    for run in (one, other):
        run.train()
    assert_same_weights(one, other, rtol=0, atol=1e-9)
    assert steps(one)[-1]["reg_loss"] > 0


def test_iterable_datasets_train(trainer):
    run = trainer(make_multi_label_dataset(form="vectors").to_iterable_dataset(), class_names=CLASS_NAMES)
    run.train()
    assert len(steps(run)) == 3


@pytest.mark.parametrize("peft_config", [None, "lora"])
def test_what_is_saved_loads_with_its_bias_and_gives_a_probability_of_every_class(
    trainer, processor, tmp_path, peft_config
):
    evaluation = make_multi_label_dataset(10, seed=1)
    run = trainer(evaluation=evaluation, peft_config=peft_config, num_train_epochs=1, max_steps=-1)
    run.train()
    metrics = run.evaluate()
    run.save_model()
    run.create_model_card()
    classifier = load(run.args.output_dir) if peft_config is None else load(run.args.output_dir, base=TINY_CLIP)
    predictions = classifier([row["image"] for row in evaluation])
    expected = torch.tensor(run.predict(evaluation).predictions).sigmoid()
    for row, prediction in zip(expected.tolist(), predictions, strict=True):
        assert list(prediction.scores.values()) == pytest.approx(row, abs=1e-6)
        assert prediction.labels == tuple(name for name in CLASS_NAMES if prediction.scores[name] >= 0.5)
    table = predict(classifier, evaluation, top_k=2, progress=False)
    assert table["predictions"][:] == ["|".join(prediction.labels) for prediction in predictions]
    assert table["prediction"][:] == [prediction.label for prediction in predictions]
    assert "top_3" not in table.column_names
    again = evaluate_zero_shot(
        classifier.model, processor, evaluation, templates=classifier.templates, multi_label=True, progress=False
    )
    assert again.map == pytest.approx(metrics["eval_map"])
    card = (tmp_path / "output" / "README.md").read_text()
    assert "| eval | " in card
    assert "mean_average_precision" in card
    assert "accuracy" not in card.lower()
    assert "classifier([image])[0].labels" in card
    weights = "model.safetensors" if peft_config is None else "adapter_model.safetensors"
    assert weights in publishable(tmp_path / "output")[0]
    if peft_config is not None:
        run.merge_and_save(tmp_path / "merged")
        merged = load(tmp_path / "merged")([evaluation[0]["image"]])[0]
        assert merged.scores == pytest.approx(predictions[0].scores, abs=1e-5)


def test_the_best_model_is_chosen_by_a_multi_label_metric(trainer):
    run = trainer(
        evaluation=make_multi_label_dataset(16, seed=1),
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_worst_class_ap",
    )
    run.train()
    assert run.state.best_metric == max(
        entry["eval_worst_class_ap"] for entry in run.state.log_history if "eval_map" in entry
    )
    assert run.evaluate()["eval_worst_class_ap"] == run.state.best_metric


def test_sigmoid_models_use_their_own_bias(config):
    model, processor = family("siglip")
    start = model.logit_bias.item()
    run = StarFTTrainer(copy.deepcopy(model), config(**MULTI), make_multi_label_dataset(), processing_class=processor)
    assert run.model.logit_bias.item() == start
    run.train()
    assert run.model.logit_bias.item() != start


def test_a_run_of_another_loss_drops_the_bias_that_was_added(trainer, config, dataset, processor):
    run = trainer()
    assert hasattr(run.model, "logit_bias")
    other = StarFTTrainer(run.model, config(), dataset, processing_class=processor)
    assert not hasattr(other.model, "logit_bias")
    other.train()


def test_two_runs_can_be_interpolated_but_not_with_a_model_without_bias(trainer, tmp_path, processor):
    for name, seed in (("a", 0), ("b", 1)):
        run = trainer(output_dir=str(tmp_path / name), seed=seed)
        run.train()
        run.save_model()
    interpolate_checkpoints(tmp_path / "a", tmp_path / "b", 0.5, tmp_path / "mean")
    biases = [load(tmp_path / name).model.logit_bias.item() for name in ("a", "b", "mean")]
    assert biases[2] == pytest.approx((biases[0] + biases[1]) / 2)
    with pytest.raises(ValueError, match="logit_bias"):
        interpolate_checkpoints(TINY_CLIP, tmp_path / "a", 0.5, tmp_path / "half")


def test_a_bias_is_matched_to_a_share():
    logits = torch.randn(50, 7, dtype=torch.float64) * 3 + 25
    for share in (1e-6, 0.03, 0.5, 0.999):
        assert (logits + matched_bias(logits, share)).sigmoid().mean().item() == pytest.approx(share, rel=1e-6)
    assert matched_bias(torch.full((2, 2), 20.0), 0.5) == pytest.approx(-20)


SETTINGS = [
    ({"regularizer": "star"}, "regularizer='star' leaves out the captions of the class.*use regularizer='kl'"),
    ({"regularizer": "conditional"}, "regularizer='conditional' compares the classes with each other"),
    ({"reweight": "attribution"}, "reweight='attribution' gives every image a weight by its class"),
    ({"caption_column": "note"}, "compares images with captions of the classes"),
    ({"metric_for_best_model": "eval_worst_group_accuracy"}, "images of several classes do not have; use map"),
    ({"metric_for_best_model": "eval_worst_class"}, "the name of a class; use its ap, eval_worst_class_ap"),
    ({"label_column": "none"}, "no column 'none'"),
]


@pytest.mark.parametrize(("settings", "words"), SETTINGS, ids=[str(settings) for settings, _ in SETTINGS])
def test_what_needs_one_class_per_image_is_refused_before_anything_is_loaded(config, settings, words):
    with pytest.raises(ValueError, match=words):
        StarFTTrainer("no/such-model", config(**MULTI, **settings), make_multi_label_dataset())


def test_arguments_that_need_one_class_per_image_are_refused(config, clip, processor, tmp_path):
    data, args = make_multi_label_dataset(), config(**MULTI)
    with pytest.raises(ValueError, match="spuriosity='auto' looks for what is correlated with the class"):
        StarFTTrainer("no/such-model", args, data, spuriosity="auto")
    with pytest.raises(ValueError, match="class_mapping is for images of one class"):
        StarFTTrainer("no/such-model", args, data, data, class_mapping=[[0], [1], [2], [3]])
    with pytest.raises(ValueError, match="pass train_dataset"):
        StarFTTrainer(clip, args, eval_dataset=data, processing_class=processor)
    for what in (compare, tune):
        with pytest.raises(ValueError, match=f"{what.__name__} compares accuracies"):
            what("no/such-model", args, data, data)
    with pytest.raises(ValueError, match=r"column 'label' is multi-label.*base_loss='multi_label'"):
        StarFTTrainer("no/such-model", config(), data)


def test_repairs_and_reports_refuse_multi_label_models(trainer, dataset, tmp_path):
    run = trainer(evaluation=make_multi_label_dataset(8, seed=1))
    run.evaluate()
    run.save_model()
    with pytest.raises(ValueError, match=r"repair and audit are .*one class each\. `starft evaluate` measures"):
        repair(run.args.output_dir, None, dataset, output_dir=tmp_path / "repaired")
    with pytest.raises(ValueError, match="no accuracies"):
        Run("kl", 0, run.evaluation_results)


def test_auto_is_kl_and_its_weight_is_by_the_number_of_classes(trainer):
    run = trainer()
    assert (run.setup.regularizer_name, run.setup.reg_weight) == ("kl", 30 / 4)
    assert run.record.regularizer == "kl"


def test_unreadable_images_are_skipped(trainer):
    dataset = make_multi_label_dataset(12)
    rows = [{**row, "image": row["image"]} for row in dataset]
    rows[3]["image"] = {"path": None, "bytes": b"no image"}
    run = trainer(dataset.from_list(rows, features=dataset.features), on_bad_image="skip", max_steps=2)
    run.train()
    assert len(run.skipped_images) == 1


def test_a_bias_that_the_model_has_is_kept(trainer):
    model = CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32)
    add_bias(model, -3.0)
    assert trainer(model=model).model.logit_bias.item() == -3.0


def test_a_frozen_text_tower_stays_as_it_is(trainer):
    run = trainer(freeze=["text"], max_steps=2, learning_rate=1e-3)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    same = {name for name, value in run.model.state_dict().items() if value.equal(before[name])}
    assert {name for name in before if name.startswith("text")} <= same
    assert {"logit_bias", "visual_projection.weight"} & same == set()


@pytest.mark.parametrize(
    "settings",
    [
        {"caption_template": ["a photo of a {}.", "a blue {}."], "gradient_accumulation_steps": 2},
        {"reference_cache": "none", "mini_batch_size": 2},
        {"regularizer": "none"},
    ],
    ids=["cached", "live, in chunks", "no regularizer"],
)
def test_class_captions_that_are_embedded_once_change_nothing(trainer, monkeypatch, settings):
    settings = {"freeze": ["text"], "dtype": torch.float64, "learning_rate": 1e-3, **settings}
    once = trainer(**settings)
    forwards = []
    once.model.text_model.register_forward_hook(lambda *_: forwards.append(1))
    once.setup.prepare(once.args.device)
    before = len(forwards)
    once.train()
    assert before
    assert len(forwards) == before
    monkeypatch.setattr(setup, "frozen_texts", lambda *args, **kwargs: None)
    in_every_step = trainer(**settings)
    in_every_step.train()
    for one, other in zip(steps(once), steps(in_every_step), strict=True):
        for key in ("loss", "base_loss", "reg_loss", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=1e-12, abs=1e-12)
    assert_same_weights(once, in_every_step, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{"shots": 2}, {"train_sampling_strategy": "class_balanced"}])
def test_draws_by_class_are_refused(config, settings):
    with pytest.raises(ValueError, match="an image has any number of them"):
        config(**MULTI, **settings)


def test_some_of_the_images_may_be_drawn(trainer):
    run = trainer(max_train_samples=10, max_steps=1)
    run.train()
    assert len(run.train_dataset) == 10
