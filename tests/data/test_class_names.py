"""Class names of every script and length, and datasets at the edge of what can be trained on."""

import logging

import numpy as np
import pytest
import torch
from datasets import Value

from starft_hf import SpuriosityPool, StarFTTrainer, discover_spuriosity, evaluate_zero_shot
from starft_hf.data.captions import CaptionBank
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.texts import TextEncoding
from starft_hf.utils.names import check_names
from tests.support.families import FAMILIES, family
from tests.support.tiny import CLASS_NAMES, make_dataset


NAMES = [
    "\u0628\u0648\u0645\u0629",
    "\u732b\u982d\u9df9",
    "h\u00e4\u00dflicher \u1e9e-uhu",
    "\U0001f989 \u05d9\u05e0\u05e9\u05d5\u05e3 \u200f",
]
TEMPLATE = "a photo that was taken on a very long walk along the river in the early morning of a {}."


@pytest.fixture
def warned(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if "text tower sees" in r.getMessage()]


@pytest.mark.parametrize("workers", [0, 2])
def test_names_of_every_script_train_and_evaluate(config, workers):
    clip, processor = family("clip")
    dataset = make_dataset(class_names=NAMES)
    args = config(dataloader_num_workers=workers)
    trainer = StarFTTrainer(clip, args, dataset, dataset, processing_class=processor)
    trainer.train()
    trainer.evaluate()
    assert set(trainer.evaluation_results["eval"].group_accuracies) == set(NAMES)
    assert set(evaluate_zero_shot(clip, processor, dataset, progress=False).group_accuracies) == set(NAMES)


def shown(encoder, text):
    """What the text tower sees of a text."""
    encoding = encoder.encode_texts
    ids = encoding.tokenizer(text, truncation=True, max_length=encoding.max_length)["input_ids"]
    return encoding.tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_too_long_is_cut_around_the_class_name_and_warned_of_once(name, warned):
    model, processor = family(name)
    encoder = DualEncoder.of(model, processor)
    long_name = "great grey owl of the far north"
    pool = SpuriosityPool([f"{{}} {'in the snow ' * 9}.", f"{'seen through a dusty window ' * 4}: a {{class}}."])
    bank = CaptionBank(["owl", long_name], [TEMPLATE, "a photo of a {}."], pool, encoder.encode_texts)
    for label, class_name in enumerate(bank.class_names):
        for template in range(2):
            texts = [bank.caption(label, template)]
            texts += [bank.spurious_caption(label, template, index) for index in range(2)]
            for text in texts:
                assert class_name.replace(" ", "") in shown(encoder, text), text
    assert len(warned()) == 1
    # What fits is left as it is.
    assert bank.caption(0, 1) == "a photo of a owl."


def test_a_name_that_does_not_fit_by_itself_is_refused_before_training(clip, processor, config):
    dataset = make_dataset(class_names=["owl", "truck", "violin", "fern of " * 60])
    with pytest.raises(ValueError, match=r"class name 'fern of .* takes [0-9]+ tokens, and the text tower sees"):
        StarFTTrainer(clip, config(), dataset, processing_class=processor)
    with pytest.raises(ValueError, match="pass class_names with a shorter one"):
        evaluate_zero_shot(clip, processor, dataset, progress=False)


@pytest.mark.parametrize("cache", ["text", "none"])
def test_a_run_with_long_prompts_warns_once(config, cache, warned, monkeypatch):
    model, processor = family("clip")
    args = config(caption_template=TEMPLATE, reference_cache=cache, dataloader_num_workers=2, max_steps=6)
    dataset = make_dataset()
    trainer = StarFTTrainer(model, args, dataset, dataset, processing_class=processor)
    trainer.train()
    trainer.evaluate()
    assert len(warned()) == 1
    monkeypatch.setattr(TextEncoding, "knows", lambda *_: True)
    discover_spuriosity(model, processor, dataset, caption_template=TEMPLATE, permutations=100, progress=False)
    evaluate_zero_shot(model, processor, dataset, templates=TEMPLATE, progress=False)
    assert len(warned()) == 1


def test_long_captions_of_a_column_are_warned_of_once(config, warned):
    model, processor = family("clip")
    dataset = make_dataset().map(lambda row: {"note": row["note"] + " and so on" * 20})
    args = config(caption_column="note", regularizer="kl", max_steps=6)
    StarFTTrainer(model, args, dataset, processing_class=processor).train()
    assert len(warned()) == 1


@pytest.mark.parametrize(
    ("label", "words"), [(7, "label 7, but there are 4"), (-1, "label -1, but there are 4"), (None, "without a value")]
)
def test_labels_out_of_range_and_missing_ones(clip, processor, config, label, words):
    labels = make_dataset()["label"][:]
    labels[5] = label
    dataset = make_dataset().remove_columns("label").add_column("label", labels)
    with pytest.raises(ValueError, match=words):
        StarFTTrainer(clip, config(class_names=CLASS_NAMES), dataset, processing_class=processor)
    with pytest.raises(ValueError, match=words):
        evaluate_zero_shot(clip, processor, dataset, class_names=CLASS_NAMES, progress=False)


def test_labels_out_of_range_in_an_iterable_dataset_and_a_dataset_without_columns(clip, processor, config):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"image": np.zeros((8, 8, 3), np.uint8), "label": index}

    args = config(class_names=CLASS_NAMES)
    iterable = make_dataset(8).remove_columns("label").add_column("label", list(range(8))).to_iterable_dataset()
    for dataset in (Rows(), iterable):
        with pytest.raises(ValueError, match=r"label [4-7], but there are 4"):
            StarFTTrainer(clip, args, dataset, processing_class=processor).train()


def test_no_two_classes_have_the_same_name(clip, processor, config, dataset):
    names = ["owl", "crane", "violin", "crane"]
    integers = dataset.cast_column("label", Value("int64"))
    for call in (
        lambda: StarFTTrainer(clip, config(class_names=names), integers, processing_class=processor),
        lambda: StarFTTrainer(clip, config(class_names=names), integers, integers, processing_class=processor),
        lambda: evaluate_zero_shot(clip, processor, integers, class_names=names, progress=False),
    ):
        with pytest.raises(ValueError, match=r"contains duplicates: 'crane', for labels 1 and 3; .*crane \(bird\)"):
            call()


def test_a_data_set_shorter_than_a_batch_trains_unless_its_only_batch_is_dropped(clip, processor, config, dataset):
    short = dataset.select(range(5))
    trainer = StarFTTrainer(clip, config(max_steps=2), short, short, processing_class=processor)
    assert np.isfinite(trainer.train().training_loss)
    assert trainer.state.global_step == 2
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    args = config(dataloader_drop_last=True)
    with pytest.raises(ValueError, match=r"5 rows, fewer than the 8 .*dataloader_drop_last=False"):
        StarFTTrainer(clip, args, short, processing_class=processor)


def test_templates_reach_into_no_object():
    pool = SpuriosityPool(["{} in {0.__class__}.", "a {class} of {class.__init__} and {self!r}."])
    assert pool.inject("a photo of a {name.__class__}.", "{0}", 0) == "a photo of a {name.__class__} in {0.__class__}."
    assert pool.inject("", "owl", 1) == "a owl of {class.__init__} and {self!r}."
    bank = CaptionBank(["{0.real}"], ["a {} of {1}, {x.__class__}."], pool)
    assert bank.caption(0, 0) == "a {0.real} of {1}, {x.__class__}."


@pytest.mark.parametrize(
    ("names", "advice"), [({0: "owl", 1: "fern"}, "label in sorted"), ({"owl", "fern"}, "sorted")]
)
def test_names_without_the_order_of_the_labels_are_refused(names, advice):
    with pytest.raises(ValueError, match=f"class_names is a {type(names).__name__}, .*pass a list.*{advice}"):
        check_names(names)
