import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPModel, pipeline

from starft_hf import StarFTConfig, StarFTTrainer, register_regularizer
from starft_hf.hub.record import RunRecord
from starft_hf.models.heads import HEAD_FILE, load_head
from starft_hf.objectives.regularizers import Regularizer, get_regularizer
from tests.support.runs import assert_same_weights, steps
from tests.support.tiny import CHECKPOINTING, CLASS_NAMES, MANY_NAMES, make_dataset


def train(model, args, dataset, **kwargs):
    trainer = StarFTTrainer(model, args, dataset, **kwargs)
    trainer.train()
    return trainer


def weights(trainer):
    return trainer.model.state_dict()


def test_logs_carry_the_parts_of_the_loss(clip, processor, config, dataset):
    trainer = train(
        clip, config(reg_weight=2.0, reg_schedule="linear", max_steps=4), dataset, processing_class=processor
    )
    assert [entry["reg_weight"] for entry in steps(trainer)] == pytest.approx([1.5, 1.0, 0.5, 0.0])
    for entry in steps(trainer):
        assert entry["loss"] == pytest.approx(entry["base_loss"] + entry["reg_weight"] * entry["reg_loss"], rel=1e-5)
        assert entry["logit_scale"] == pytest.approx(20, rel=0.05)
    assert steps(trainer)[0]["reg_loss"] == pytest.approx(0, abs=1e-6)
    assert steps(trainer)[2]["reg_loss"] > 1e-4


def test_logs_are_means_over_the_steps_since_the_last(clip, processor, config, dataset):
    every = train(copy.deepcopy(clip), config(max_steps=4), dataset, processing_class=processor)
    second = train(clip, config(max_steps=4, logging_steps=2), dataset, processing_class=processor)
    losses = [entry["base_loss"] for entry in steps(every)]
    assert [entry["base_loss"] for entry in steps(second)] == pytest.approx(
        [sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-6
    )


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
def test_cached_equals_recomputed(base_loss, processor, config, dataset, clip):
    clip = clip.double()
    settings = {"base_loss": base_loss, "reg_schedule": "constant", "reg_weight": 5.0, "max_steps": 4}
    cached, live = (
        train(copy.deepcopy(clip), config(reference_cache=cache, **settings), dataset, processing_class=processor)
        for cache in ("text", "none")
    )
    assert cached.reference.info.kind == "cached texts"
    assert live.reference.info.kind == "frozen copy"
    assert_same_weights(cached, live, rtol=0, atol=1e-9)


def test_accumulated_gradients_are_averaged(clip, processor, config, dataset):
    """Every accumulated batch is the same, so that the mean of the gradients is the gradient of one batch."""
    rows = dataset.select(list(range(8)) * 4)
    settings = {"max_steps": 1, "train_sampling_strategy": "sequential", "crop_scale": None, "warmup_steps": 0}
    settings |= {"max_grad_norm": 0, "optim": "sgd", "learning_rate": 1e-2}
    kwargs = {"processing_class": processor, "spuriosity": ["{} at night."]}
    once = train(copy.deepcopy(clip).double(), config(**settings), rows, **kwargs)
    accumulated = train(clip.double(), config(gradient_accumulation_steps=3, **settings), rows, **kwargs)
    assert_same_weights(once, accumulated, rtol=0, atol=1e-12)
    assert steps(accumulated)[0]["loss"] == pytest.approx(steps(once)[0]["loss"], abs=1e-12)


def test_the_reference_is_the_model_as_given_and_stays_so(clip, processor, config, dataset):
    with torch.no_grad():
        clip.logit_scale.fill_(2.0)
    before = copy.deepcopy(clip.state_dict())
    trainer = train(clip, config(reference_cache="none"), dataset, processing_class=processor)
    for name, value in trainer.reference.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert trainer.reference.logit_scale.item() == pytest.approx(torch.tensor(2.0).exp().item())
    assert trainer.reference.info.forwards == 3


def test_another_reference_model(clip, processor, config, dataset):
    other = copy.deepcopy(clip)
    with torch.no_grad():
        other.visual_projection.weight.mul_(-1)
    trainer = train(clip, config(), dataset, processing_class=processor, reference_model=other)
    assert steps(trainer)[0]["reg_loss"] > 0.01


@pytest.mark.parametrize(("regularizer", "weight"), [("auto", 30), ("kl", 30), ("conditional", 30), ("none", 0)])
@pytest.mark.parametrize(("number", "share"), [(2, 9), (3, 4), (4, 2.25), (6, 1), (8, 1)])
def test_the_weight_that_was_measured(clip, processor, config, regularizer, weight, number, share, tmp_path):
    expected, dataset = weight * share, make_dataset(16, class_names=MANY_NAMES[:number])
    args = config(regularizer=regularizer, max_steps=1)
    trainer = train(clip, args, dataset, processing_class=processor)
    assert steps(trainer)[0]["reg_weight"] == expected
    assert trainer.args.reg_weight == "auto"
    trainer.save_model(str(tmp_path / "model"))
    record = RunRecord.load(tmp_path / "model")
    name = {"auto": "star" if number >= 4 else "kl", "none": None}.get(regularizer, regularizer)
    assert (record.config["reg_weight"], record.reg_weight) == ("auto", expected if weight else None)
    assert (record.config["regularizer"], record.regularizer) == (regularizer, name)
    if weight:
        trainer.create_model_card()
        card = (Path(trainer.args.output_dir) / "README.md").read_text()
        assert f"| reg_weight | auto: {expected:g} |" in card
        assert f"| regularizer | {f'auto: {name}' if regularizer == 'auto' else name} |" in card
    # For the classes of another training set, it is another number.
    assert StarFTConfig.from_pretrained(tmp_path / "model", output_dir=str(tmp_path)).reg_weight == "auto"


def test_without_regularizer_there_is_no_reference(clip, processor, config, dataset):
    trainer = train(clip, config(regularizer="none"), dataset, processing_class=processor)
    assert trainer.reference is None
    assert all(entry["reg_loss"] == 0 for entry in steps(trainer))


def test_decay_reaches_every_parameter_only_if_asked(clip, processor, config, dataset):
    for everything in (True, False):
        trainer = StarFTTrainer(clip, config(decay_all_parameters=everything), dataset, processing_class=processor)
        decayed = trainer.get_decay_parameter_names(clip)
        assert ("vision_model.post_layernorm.bias" in decayed) == everything
        assert ("vision_model.pre_layrnorm.weight" in decayed) == everything
        assert "visual_projection.weight" in decayed


def test_a_registered_regularizer_needs_no_change_elsewhere(clip, processor, config, dataset, monkeypatch):
    monkeypatch.setattr("starft_hf.objectives.regularizers._REGISTRY", {"star": get_regularizer("star")})
    seen = []

    def cosine(inputs):
        seen.append(inputs.column_embeds.shape)
        return (1 - (inputs.image_embeds * inputs.reference_image_embeds).sum(-1)).mean()

    register_regularizer(Regularizer("cosine", cosine))
    for name in ("cosine", "auto", "none"):
        with pytest.raises(ValueError, match="exists already"):
            register_regularizer(Regularizer(name, cosine))
    trainer = train(clip, config(regularizer="cosine", reg_weight=0.5), dataset, processing_class=processor)
    assert seen == [(8, 32)] * 3
    assert steps(trainer)[-1]["reg_loss"] > 0


def test_a_caption_column_without_labels(clip, processor, config, dataset):
    captions = dataset.remove_columns("label")
    trainer = train(clip, config(caption_column="note"), captions, processing_class=processor)
    assert (trainer.setup.regularizer_name, trainer.reg_weight) == ("kl", 30)
    assert trainer.reference.info.kind == "frozen copy"
    assert steps(trainer)[-1]["reg_loss"] > 0


def test_a_stream_trains_and_is_evaluated(clip, processor, config, dataset):
    stream = dataset.to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=8)
    trainer = train(clip, config(max_steps=5), stream, processing_class=processor, eval_dataset=stream)
    assert len(steps(trainer)) == 5
    alone = trainer.evaluate(dataset)
    streamed = trainer.evaluate()
    for name in ("eval_accuracy", "eval_worst_group_accuracy", "eval_loss", "eval_ece"):
        assert streamed[name] == pytest.approx(alone[name], abs=1e-6)


def test_a_torch_data_set_of_mappings(clip, processor, config, dataset):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            return {"image": dataset[index]["image"], "label": CLASS_NAMES[dataset[index]["label"]]}

    trainer = train(clip, config(class_names=CLASS_NAMES), Rows(), processing_class=processor)
    assert len(steps(trainer)) == 3


def test_a_label_column_of_strings(clip, processor, config, dataset):
    names = [CLASS_NAMES[label] for label in dataset["label"]]
    strings = Dataset.from_dict({"image": dataset["image"][:], "label": names}).cast_column("image", Image())
    trainer = train(clip, config(), strings, processing_class=processor, eval_dataset=strings)
    assert trainer.class_names == tuple(sorted(CLASS_NAMES))
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(trainer.evaluate(dataset)["eval_accuracy"])


def test_underscores_are_read_as_spaces(clip, processor, config):
    dataset = make_dataset(class_names=["fire_truck", "barn_owl", "a__b", "x"])
    trainer = StarFTTrainer(clip, config(), dataset, processing_class=processor)
    assert [trainer.bank.caption(label, 0) for label in (0, 2)] == ["a photo of a fire truck.", "a photo of a a b."]


def test_an_image_transform_of_the_users_own(clip, processor, config, dataset):
    sizes = []

    def transform(image):
        sizes.append(image.size)
        return torch.rand(3, 16, 16)

    train(clip, config(), dataset, processing_class=processor, image_transform=transform)
    assert set(sizes) == {(24, 24)}


def test_frozen_towers_stay_frozen(clip, processor, config, dataset):
    clip.text_model.requires_grad_(False)
    before = copy.deepcopy(clip.text_model.state_dict())
    trainer = train(clip, config(), dataset, processing_class=processor)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.text_model.state_dict().items())


@pytest.mark.parametrize("settings", [{"bf16": True}, {CHECKPOINTING: True}], ids=lambda s: next(iter(s)))
def test_memory_savers(clip, processor, config, dataset, settings):
    plain = train(copy.deepcopy(clip), config(), dataset, processing_class=processor)
    saving = train(clip, config(**settings), dataset, processing_class=processor)
    assert steps(saving)[-1]["loss"] == pytest.approx(steps(plain)[-1]["loss"], rel=0.05)


# Saving


@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
def test_a_checkpoint_is_a_plain_clip_checkpoint(base_loss, clip, processor, config, dataset, tmp_path, recwarn):
    args = config(base_loss=base_loss, save_strategy="steps", save_steps=3)
    trainer = train(clip, args, dataset, processing_class=processor)
    checkpoint = tmp_path / "output" / "checkpoint-3"
    loaded, info = CLIPModel.from_pretrained(checkpoint, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])
    saved = AutoProcessor.from_pretrained(checkpoint)
    assert saved.tokenizer("a photo of a fern.").input_ids == processor.tokenizer("a photo of a fern.").input_ids
    classify = pipeline("zero-shot-image-classification", model=str(checkpoint))
    answers = classify(dataset[0]["image"], candidate_labels=CLASS_NAMES, hypothesis_template="a photo of a {}.")
    assert {answer["label"] for answer in answers} == set(CLASS_NAMES)
    if base_loss == "cross_entropy":
        head, class_names = load_head(checkpoint)
        assert class_names == CLASS_NAMES
        assert torch.equal(head.weight, trainer.head.weight)


def test_the_best_checkpoint_is_picked_by_worst_group_accuracy(clip, processor, config, dataset):
    args = config(
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_shifted_worst_group_accuracy",
        group_column="group",
        base_loss="cross_entropy",
        learning_rate=5e-3,
    )
    sets = {"same": make_dataset(12, seed=5), "shifted": make_dataset(16, seed=6)}
    trainer = train(clip, args, dataset, processing_class=processor, eval_dataset=sets)
    history = [entry for entry in trainer.state.log_history if "eval_shifted_worst_group_accuracy" in entry]
    values = [entry["eval_shifted_worst_group_accuracy"] for entry in history]
    assert len(values) == 4
    assert trainer.state.best_metric == max(values)
    assert trainer.evaluate(sets)["eval_shifted_worst_group_accuracy"] == max(values)


def test_logs_reach_tensorboard(clip, processor, config, dataset, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    train(clip, config(report_to="tensorboard"), dataset, processing_class=processor)
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    tags = events.Tags()["scalars"]
    for name in ("loss", "base_loss", "reg_loss", "reg_weight", "logit_scale"):
        assert f"train/{name}" in tags
    assert len(events.Scalars("train/base_loss")) == 3


# Evaluation


def test_evaluation_equals_the_models_own_forward(clip, processor, config, dataset):
    settings = {"group_column": "group", "per_device_eval_batch_size": 7}
    trainer = StarFTTrainer(clip, config(**settings), dataset, dataset, processing_class=processor)
    metrics = trainer.evaluate()
    captions = [f"a photo of a {name}." for name in CLASS_NAMES]
    inputs = processor(images=dataset["image"][:], text=captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = clip.eval()(**inputs).logits_per_image
    labels, groups = torch.tensor(dataset["label"]), torch.tensor(dataset["group"])
    correct = (logits.argmax(-1) == labels).float()
    by_group = [correct[groups == group].mean().item() for group in (0, 1)]
    shares = [(groups == group).float().mean().item() for group in (0, 1)]
    assert metrics["eval_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx(correct.mean().item())
    assert [metrics["eval_accuracy_left"], metrics["eval_accuracy_right"]] == pytest.approx(by_group)
    assert metrics["eval_worst_group_accuracy"] == pytest.approx(min(by_group))
    adjusted = sum(accuracy * share for accuracy, share in zip(by_group, shares, strict=True))
    assert metrics["eval_group_adjusted_accuracy"] == pytest.approx(adjusted)
    assert 0 <= metrics["eval_ece"] <= 1


def test_several_data_sets_each_with_its_own_classes(clip, processor, config, dataset):
    two = make_dataset(10, class_names=CLASS_NAMES[:2])
    trainer = StarFTTrainer(clip, config(), dataset, {"all": dataset, "two": two}, processing_class=processor)
    metrics = trainer.evaluate()
    assert {"eval_all_accuracy", "eval_two_accuracy"} <= metrics.keys()
    groups = {name: set(result.group_accuracies) for name, result in trainer.evaluation_results.items()}
    assert groups == {"all": set(CLASS_NAMES), "two": set(CLASS_NAMES[:2])}


def test_prompt_ensembles_change_the_classifier(clip, processor, config, dataset):
    losses = [
        StarFTTrainer(clip, config(eval_templates=templates), None, dataset, processing_class=processor).evaluate()
        for templates in (None, ["a photo of a {}.", "a photo of a {}."], ["a photo of a {} in the snow."])
    ]
    assert losses[0]["eval_loss"] == pytest.approx(losses[1]["eval_loss"], rel=1e-6)
    assert losses[0]["eval_loss"] != pytest.approx(losses[2]["eval_loss"], rel=1e-6)


def test_a_cross_entropy_head_starts_as_the_zero_shot_classifier(clip, processor, config, dataset):
    settings = {"per_device_eval_batch_size": 5, "reg_weight": 0.5}
    zero_shot = StarFTTrainer(copy.deepcopy(clip), config(**settings), dataset, dataset, processing_class=processor)
    settings["base_loss"] = "cross_entropy"
    trained = StarFTTrainer(clip, config(max_steps=20, **settings), dataset, dataset, processing_class=processor)
    start = trained.evaluate()["eval_loss"]
    assert start == pytest.approx(zero_shot.evaluate()["eval_loss"], rel=1e-5)
    trained.train()
    assert trained.evaluate()["eval_loss"] < start


def test_users_metrics_get_the_logits_of_the_whole_set(clip, processor, config, dataset):
    def metrics(prediction):
        return {"argmax": (prediction.predictions.argmax(-1) == prediction.label_ids).mean().item()}

    settings = {"per_device_eval_batch_size": 7}
    trainer = StarFTTrainer(
        clip, config(**settings), dataset, dataset, processing_class=processor, compute_metrics=metrics
    )
    result = trainer.evaluate()
    assert result["eval_argmax"] == pytest.approx(result["eval_accuracy"])


def test_predictions(clip, processor, config, dataset):
    trainer = StarFTTrainer(clip, config(per_device_eval_batch_size=7), dataset, processing_class=processor)
    output = trainer.predict(dataset)
    assert output.predictions.shape == (24, 4)
    assert output.label_ids.tolist() == dataset["label"][:]
    accuracy = (output.predictions.argmax(-1) == output.label_ids).mean()
    assert output.metrics["test_accuracy"] == pytest.approx(accuracy)


def test_a_trainer_is_freed_when_its_last_name_goes(clip, processor, config, dataset, tmp_path):
    args = config(save_strategy="steps", save_steps=2, max_steps=2)
    trainer = StarFTTrainer(clip, args, dataset, dataset, processing_class=processor)
    trainer.train()
    freed = weakref.ref(trainer)
    gc.collect()
    gc.disable()
    try:
        # Without the collector, as in a loop over seeds: a cycle would keep every model and optimizer.
        del trainer
        assert freed() is None
    finally:
        gc.enable()


def test_the_head_of_an_earlier_run_is_not_saved(clip, processor, config, dataset, tmp_path):
    first = StarFTTrainer(clip, config(base_loss="cross_entropy"), dataset, processing_class=processor)
    assert first.head is not None
    second = StarFTTrainer(first.model, config(), dataset, processing_class=processor)
    second.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / HEAD_FILE).exists()
    assert not [name for name in load_file(tmp_path / "saved" / "model.safetensors") if "head" in name]
