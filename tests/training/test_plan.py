"""Bad input is refused before anything expensive, with what was passed and what to do."""

import logging

import pytest
from datasets import DatasetDict, Value
from transformers import TrainingArguments

from starft_hf import SpuriosityPool, StarFTConfig, StarFTTrainer
from tests.support.tiny import CLASS_NAMES, make_dataset


@pytest.fixture
def refused(config, monkeypatch):
    """Builds a trainer that must be refused before a model is loaded, and returns the message."""

    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded before the mistake was found")

    def build(dataset, eval_dataset=None, match=None, trainer=None, **settings):
        monkeypatch.setattr("starft_hf.training.setup.load_model", fail)
        with pytest.raises(ValueError, match=match):
            StarFTTrainer("some/model", config(**settings), dataset, eval_dataset, **trainer or {})

    return build


def test_missing_columns_are_listed(refused, dataset):
    refused(dataset.rename_column("image", "picture"), match=r"no column 'image'.*'picture'.*Set image_column")
    refused(dataset.rename_column("label", "kind"), match=r"no column 'label'.*'kind'.*Set label_column")
    refused(dataset, match=r"no column 'text'.*'note'.*Set caption_column", caption_column="text")


def test_class_names_that_are_missing_or_too_few(refused, dataset):
    integers = dataset.cast_column("label", Value("int64"))
    refused(integers, match="no class names.*ClassLabel")
    refused(integers, match=r"label 3, but there are 3 class names", class_names=CLASS_NAMES[:3])
    names = [CLASS_NAMES[label] for label in dataset["label"]]
    strings = dataset.remove_columns("label").add_column("label", names)
    refused(strings, match="unknown label 'truck'.*", class_names=["owl", "trucks", "violin", "fern"])


def test_data_sets_that_cannot_be_trained_on(refused, dataset):
    refused(dataset.select([]), match="train_dataset is empty")
    refused(dataset.filter(lambda row: row["label"] == 0), match="only one class \\('owl'\\)")
    one = make_dataset(8, class_names=["owl"])
    refused(one, match="compares classes, and there is only one", regularizer="conditional")
    refused(DatasetDict(train=dataset), match=r"splits \['train'\]")


def test_pools_that_cannot_be_used(refused, dataset):
    refused(dataset, match="exactly one placeholder", trainer={"spuriosity": ["in the snow"]})
    refused(dataset, match="is empty", trainer={"spuriosity": []})
    refused(dataset, match="Did you mean 'texture'", trainer={"spuriosity": "textures"})
    pool = SpuriosityPool(["{} in the snow.", "{} at night."], classes=[["owl", "truck"], ["fern"]])
    refused(dataset, match="no template for class 'violin'", trainer={"spuriosity": pool})
    captions = dataset.remove_columns("label")
    restricted = {"regularizer": "kl", "caption_column": "note", "trainer": {"spuriosity": pool}}
    refused(captions, match="no template for rows without a label", **restricted)


def test_restrictions_and_weights_without_effect_are_warned_of(clip, processor, config, dataset, caplog):
    templates = ["{} in the snow.", "{} at night."]
    pool = SpuriosityPool(templates, weights=[1, 2], classes=[None, ["owls"]])
    StarFTTrainer(
        clip, config(regularizer="car-ft", reg_weight=0.5), dataset, processing_class=processor, spuriosity=pool
    )
    assert "Did you mean 'owl'" in caplog.text
    assert "weights of the templates" in caplog.text


def test_settings_that_need_labels(refused, dataset):
    captions = dataset.remove_columns("label")
    refused(captions, match="cross_entropy' needs labels", caption_column="note", base_loss="cross_entropy")
    refused(captions, match="'conditional' compares classes.*'kl'", caption_column="note", regularizer="conditional")
    refused(captions, match="'attribution' gives every", caption_column="note", reweight="attribution")
    pool = {"spuriosity": ["a striped {class}."]}
    refused(captions, match=r"striped \{class\}", caption_column="note", regularizer="kl", trainer=pool)


def test_what_this_version_does_not_do(refused, dataset):
    refused(dataset, match="Did you mean 'lora-text'", trainer={"peft_config": "lora-tex"})
    refused(dataset, match="register a regularizer", trainer={"compute_loss_func": print})
    refused(dataset, match="pass the model itself", trainer={"model_init": print})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"reg_weight": -1}, "reg_weight is -1"),
        ({"reg_weight": float("nan")}, "finite"),
        ({"reg_weight": "automatic"}, "finite number that is not negative, or 'auto'"),
        ({"reg_weight": "auto", "regularizer": "l2-sp"}, "no weight for reg_weight='auto'"),
        ({"regularizer": "starr"}, "unknown regularizer 'starr'. Did you mean 'star'?"),
        ({"base_loss": "crossentropy"}, "Did you mean 'cross_entropy'?"),
        ({"reg_schedule": "epoch-linear"}, "Did you mean 'epoch_linear'?"),
        ({"reference_cache": "texts"}, "Did you mean 'text'?"),
        ({"crop_scale": (0.9, 1.2)}, "0 < low <= high <= 1"),
        ({"crop_scale": 0.9}, "two numbers"),
        ({"caption_template": "a photo"}, r"exactly one \{\}"),
        ({"caption_template": []}, "empty list"),
        ({"eval_templates": ["{} and {}"]}, "eval_templates has"),
        ({"remove_unused_columns": True}, "image column"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
    ],
)
def test_settings_that_are_wrong_by_themselves(config, settings, match):
    with pytest.raises(ValueError, match=match):
        config(**settings)


def test_plain_training_arguments_are_refused(clip, processor, tmp_path, dataset):
    with pytest.raises(ValueError, match="pass a StarFTConfig"):
        StarFTTrainer(clip, TrainingArguments(str(tmp_path), use_cpu=True), dataset, processing_class=processor)


def test_evaluation_sets_are_checked_at_once(clip, processor, config, dataset):
    build = lambda eval_dataset, **settings: StarFTTrainer(  # noqa: E731
        clip, config(**settings), dataset, eval_dataset, processing_class=processor
    )
    with pytest.raises(ValueError, match="eval_dataset is empty"):
        build(dataset.select([]))
    with pytest.raises(ValueError, match="no column 'label'"):
        build({"a": dataset, "b": dataset.remove_columns("label")})
    with pytest.raises(ValueError, match="no column 'place'"):
        build(dataset, group_column="place")


def test_text_cache_needs_a_finite_set_of_captions(clip, processor, config, dataset):
    settings = {"caption_column": "note", "reference_cache": "text"}
    with pytest.raises(ValueError, match="reference_cache='auto'"):
        StarFTTrainer(clip, config(**settings), dataset, processing_class=processor)


def test_nothing_to_train_on(clip, processor, config):
    with pytest.raises(ValueError, match="pass train_dataset"):
        StarFTTrainer(clip, config(), processing_class=processor).train()


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.getLogger("starft_hf").setLevel(logging.WARNING)
    return caplog


def test_unwise_settings_are_warned_of(clip, processor, config, warnings):
    two = make_dataset(class_names=CLASS_NAMES[:2])
    StarFTTrainer(clip, config(regularizer="star"), two, processing_class=processor)
    assert "regularizer='kl' is recommended below 4 classes" in warnings.text
    warnings.clear()
    StarFTTrainer(clip, config(), two, processing_class=processor)
    assert "recommended" not in warnings.text
    one_epoch = {"max_steps": -1, "num_train_epochs": 1, "reg_schedule": "epoch_linear"}
    StarFTTrainer(clip, config(**one_epoch), make_dataset(), processing_class=processor)
    assert "0 in the last epoch" in warnings.text


def test_epoch_linear_needs_epochs(clip, processor, config, dataset):
    with pytest.raises(ValueError, match="use reg_schedule='linear'"):
        StarFTTrainer(clip, config(reg_schedule="epoch_linear", max_steps=5), dataset, processing_class=processor)


def test_images_that_are_none_are_named(clip, processor, config, dataset):
    paths = dataset.remove_columns("image").add_column("image", ["a.png"] * len(dataset))
    trainer = StarFTTrainer(clip, config(), paths, processing_class=processor)
    with pytest.raises(TypeError, match="an image is of type str"):
        trainer.train()


def test_the_defaults(tmp_path):
    config = StarFTConfig(output_dir=str(tmp_path))
    assert (config.learning_rate, config.weight_decay, config.num_train_epochs) == (1e-5, 0.1, 10)
    assert (config.regularizer, config.reg_weight, config.reg_schedule) == ("auto", "auto", "constant")
    assert config.lr_scheduler_type == "cosine"
    assert config.crop_scale == (0.9, 1.0)
    assert 0 < config.warmup_steps < 1


def test_every_setting_can_be_given_on_a_command_line(tmp_path):
    from transformers import HfArgumentParser

    line = f"--output_dir {tmp_path} --crop_scale 0.8 1.0 --class_names owl truck --reg_weight 3 --regularizer kl"
    (config,) = HfArgumentParser(StarFTConfig).parse_args_into_dataclasses(line.split())
    assert tuple(config.crop_scale) == (0.8, 1.0)
    assert config.class_names == ["owl", "truck"]
    assert (config.reg_weight, config.regularizer) == (3, "kl")
    assert config.caption_templates == ["a photo of a {}."]
    assert config.group_column is None
    assert (
        HfArgumentParser(StarFTConfig).parse_args_into_dataclasses(line.replace("3", "auto").split())[0].reg_weight
        == "auto"
    )
    line += " --group_column label place"
    assert HfArgumentParser(StarFTConfig).parse_args_into_dataclasses(line.split())[0].group_column == [
        "label",
        "place",
    ]


def test_retention_sets_are_checked_before_a_model_is_loaded(refused, dataset):
    named = {"zero_shot_probe": {"scenes": dataset.remove_columns("label")}}
    refused(dataset, match=r"zero_shot_probe 'scenes'.*no column 'label'", trainer=named)
    streamed = {"zero_shot_probe": dataset.to_iterable_dataset()}
    refused(dataset, match="zero_shot_probe 'probe' is an iterable dataset", trainer=streamed)


@pytest.mark.parametrize("value", [True, "all", "non_padding"])
def test_tokens_are_not_counted_wrongly(config, value):
    with pytest.raises(ValueError, match=r"include_num_input_tokens_seen=.* would count wrongly"):
        config(include_num_input_tokens_seen=value)
