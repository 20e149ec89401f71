"""Class names that the text tower cannot tell apart, and names that are no words."""

import logging

import pytest
from datasets import ClassLabel, Value
from tokenizers import normalizers

from starft_hf import StarFTTrainer, discover_spuriosity, evaluate_zero_shot
from starft_hf.data.captions import check_class_prompts
from starft_hf.data.imagenet import imagenet_class_names, imagenet_ids, names_of_ids
from starft_hf.data.loading import load_splits
from starft_hf.hub.classifier import Classifier
from starft_hf.models.encoder import DualEncoder
from starft_hf.training.comparison import compare
from starft_hf.utils.names import not_words
from tests.support.benchmarks import needs_open_clip
from tests.support.families import family
from tests.support.tiny import make_dataset, write_folder


ALIKE = ["owl", "fire_truck", "fern", "fire truck"]
TEMPLATES = ["a photo of a {}."]


@pytest.fixture(scope="module")
def spelling():
    """A model whose tokenizer knows every word, and its processor."""
    return family("clip")


@pytest.fixture
def warned(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if "are not words" in r.getMessage()]


CALLS = {
    "training": lambda clip, config, rows, **part: StarFTTrainer(clip, config(), rows, **part),
    "training on integers": lambda clip, config, rows, **part: StarFTTrainer(
        clip, config(class_names=ALIKE), rows.cast_column("label", Value("int64")), **part
    ),
    "evaluation in training": lambda clip, config, rows, **part: StarFTTrainer(
        clip, config(), make_dataset(), {"test": rows}, **part
    ),
    "comparison": lambda clip, config, rows, **part: compare(clip, config(), rows, rows, methods=["FLYP"], **part),
    "evaluation": lambda clip, config, rows, processing_class: evaluate_zero_shot(
        clip, processing_class, rows, progress=False
    ),
    "discovery": lambda clip, config, rows, processing_class: discover_spuriosity(
        clip, processing_class, rows, progress=False
    ),
    "classifier": lambda clip, config, rows, processing_class: Classifier(clip, processing_class, ALIKE),
    "other classes": lambda clip, config, rows, processing_class: Classifier(
        clip, processing_class, None
    ).with_classes(ALIKE),
}


@pytest.mark.parametrize("call", CALLS)
def test_names_that_read_the_same_are_refused_everywhere(clip, processor, config, call):
    with pytest.raises(ValueError, match="cannot tell the classes 'fire_truck' and 'fire truck' apart"):
        CALLS[call](clip, config, make_dataset(class_names=ALIKE), processing_class=processor)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["owl", "zebra", "panda"], r"'zebra' and 'panda' apart.*does not know the words"),
        (["owl", ""], "class 1 is called '', of which the text tower sees nothing"),
        (["owl", "_ _"], "class 1 is called '_ _'"),
        (["owl", "owl "], "reads both names alike"),
        (["owl", "owl"], "contains duplicates: 'owl', for labels 0 and 1"),
    ],
)
def test_what_cannot_be_told_apart(clip, processor, names, match):
    with pytest.raises(ValueError, match=match):
        check_class_prompts(names, TEMPLATES, DualEncoder.of(clip, processor).encode_texts)


def test_case_counts_where_the_tokenizer_sees_it():
    clip, processor = family("clip")
    check_class_prompts(["Apple", "apple"], TEMPLATES, DualEncoder.of(clip, processor).encode_texts)
    processor.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="'Apple' and 'apple' apart"):
        check_class_prompts(["Apple", "apple"], TEMPLATES, DualEncoder.of(clip, processor).encode_texts)


def test_an_empty_name_of_a_column_is_refused_in_training(clip, processor, config, dataset):
    rows = dataset.cast_column("label", ClassLabel(names=["owl", "", "violin", "fern"]))
    with pytest.raises(ValueError, match="class 1 is called ''"):
        StarFTTrainer(clip, config(), rows, processing_class=processor)


@pytest.mark.parametrize(
    ("names", "odd"),
    [
        (["n02129604", "owl"], ["n02129604"]),
        (["001.Black_footed_Albatross", "owl"], ["001.Black_footed_Albatross"]),
        (["0", "1"], ["0", "1"]),
        (["class_3", "LABEL 4", "owl"], ["class_3", "LABEL 4"]),
        (["1_owl", "2_fern"], ["1_owl", "2_fern"]),
        (["707-320", "18-wheeler", "3d printer", "1st prize", "A300B4", "nightjar"], []),
    ],
)
def test_names_that_are_no_words(names, odd):
    assert not_words(names) == odd


def test_names_that_are_no_words_are_warned_of_once(spelling, config, warned):
    model, processor = spelling
    rows = make_dataset(class_names=["0", "owl", "violin", "fern"])
    StarFTTrainer(model, config(), rows, rows, processing_class=processor).evaluate()
    (message,) = warned()
    assert "1 of 4 class names" in message
    assert "--class_names FILE" in message


def test_words_that_the_tokenizer_does_not_know_are_warned_of(clip, processor, warned):
    check_class_prompts(["owl", "zebra"], TEMPLATES, DualEncoder.of(clip, processor).encode_texts)
    (message,) = warned()
    assert "such as 'zebra'" in message


IDS = ["n03452741", "n01537544", "n02129604"]


@needs_open_clip
def test_wordnet_ids_are_named():
    assert names_of_ids(IDS) == ("grand piano", "indigo bunting", "tiger")
    assert names_of_ids(["n00000001", *IDS]) is None
    assert names_of_ids(["owl"]) is None
    names = imagenet_class_names()
    ends = [imagenet_ids()[names.index(name)] for name in ("tench", "goldfish", "tiger", "toilet paper")]
    assert ends == ["n01440764", "n01443537", "n02129604", "n15075141"]


@needs_open_clip
def test_datasets_with_wordnet_ids_are_read_by_their_names(spelling, config):
    model, processor = spelling
    labeled = make_dataset(12, class_names=IDS)
    trainer = StarFTTrainer(model, config(), labeled, labeled, processing_class=processor)
    assert trainer.class_names == ("grand piano", "indigo bunting", "tiger")
    trainer.evaluate()
    assert "tiger" in trainer.evaluation_results["eval"].group_accuracies
    strings = labeled.remove_columns("label").add_column("label", [IDS[label] for label in labeled["label"]])
    other = StarFTTrainer(model, config(group_column="label"), strings, labeled, processing_class=processor)
    # In the order of the strings.
    assert other.class_names == ("indigo bunting", "tiger", "grand piano")
    metrics = other.evaluate(strings)
    assert metrics["eval_accuracy_tiger"] == other.evaluate(labeled)["eval_accuracy_tiger"]
    assert metrics["eval_group_adjusted_accuracy"] == pytest.approx(metrics["eval_accuracy"])


@needs_open_clip
def test_all_of_imagenet_can_be_told_apart_but_for_its_own_duplicates(spelling):
    names = names_of_ids(imagenet_ids())
    assert len(set(names)) == 1000
    check_class_prompts(names, TEMPLATES, DualEncoder.of(*spelling).encode_texts)


@pytest.mark.parametrize("streaming", [False, True])
def test_ids_are_named_by_the_file_beside_the_data(tmp_path, streaming):
    write_folder(tmp_path / "CLS-LOC", ["n00000001", "n00000002", "n00000003"])
    lines = ["n00000003 crane, Grus", "n00000001 crane", "n00000002 tabby, tabby cat", "n00000009 other"]
    (tmp_path / "LOC_synset_mapping.txt").write_text("\n".join(lines))
    rows = load_splits(tmp_path / "CLS-LOC", streaming=streaming)["train"]
    assert rows.features["label"].names == ["crane", "tabby", "crane, Grus"]
    assert {row["label"] for row in rows} == {0, 1, 2}
