"""Every snippet of a card, run on the images that its results are of, gets the accuracy that the card claims."""

import contextlib
import io
import re

import pytest
from datasets import ClassLabel
from huggingface_hub import ModelCard

from starft_hf import StarFTTrainer
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import CAPTION_TEMPLATE, make_split
from starft_hf.hub.card_edits import keep_published_edits
from tests.support.families import family, towers
from tests.support.tiny import CLASS_NAMES, TINY_CLIP, make_dataset


MANY = [f"{a}_{b}" for a in ("snow", "blue", "sky", "harbor", "kettle", "in") for b in (*CLASS_NAMES, "a", "photo")]
PROMPTS = ["an {}.", "a dark photo of the {}.", "{}"]


def named(names, size=8, seed=5):
    return make_dataset(size, seed, names)


def train(config, folder, model=str(TINY_CLIP), train=None, evaluation=None, mapping=None, peft=None, **settings):
    settings = {"caption_template": "an ugly {} at noon.", "learning_rate": 1e-2, "max_steps": 2, **settings}
    args = config(output_dir=str(folder), regularizer="none", **settings)
    evaluation = {"plain": named(CLASS_NAMES)} if evaluation is None else evaluation
    data, processor = (make_dataset() if train is None else train), None
    if not isinstance(model, str):
        model, processor = model
    more = {"processing_class": processor, "peft_config": peft, "class_mapping": mapping}
    trainer = StarFTTrainer(model, args, data, evaluation, **more)
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card()
    return trainer


def snippets_of(folder, base=TINY_CLIP):
    """By title, with the paths that a reader fills in."""
    text = ModelCard.load(folder / "README.md").text.split("## How to use")[1].split("The settings of the run")[0]
    text = text.replace("path/to/this/folder", str(folder)).replace("path/to/the/base/model", str(base))
    return re.findall(r"\n([^\n]+:)\n\n```python\n(.*?)```", text, re.DOTALL)


def predictions(codes, rows, names):
    """What the last of some snippets, which build on each other, prints first, for every image."""
    found, code = [], compile("\n".join(codes), "card", "exec")
    for row in rows:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            exec(code, {"image": row["image"]})
        last = shown.getvalue().splitlines()[-1]
        found.append(min((name for name in names if name in last), key=lambda name: (last.index(name), -len(name))))
    return found


def check(folder, evaluation, expected, base=TINY_CLIP):
    """That each snippet gets the accuracy of the card on the set it is about, or else on the first set."""
    claims = {
        result.dataset_name: result.metric_value
        for result in ModelCard.load(folder / "README.md").data.eval_results
        if result.metric_type == "accuracy"
    }
    snippets = snippets_of(folder, base)
    assert [title for title, _ in snippets] == expected
    loaded = next(code for title, code in snippets if title.startswith(("With the classes", "With its")))
    for title, code in snippets:
        about = title.removeprefix("On ").split(",")[0] if title.startswith("On ") else next(iter(evaluation))
        rows = evaluation[about]
        shown = rows.features["label"].names
        if title.startswith(("With Transformers", "With PEFT")):
            shown = [name.replace("_", " ") for name in shown]
        codes = [loaded, code] if title.startswith("On ") else [code]
        guesses = [shown.index(name) for name in predictions(codes, rows, shown)]
        accuracy = sum(guess == label for guess, label in zip(guesses, rows["label"], strict=True)) / len(rows)
        assert accuracy == pytest.approx(claims[about], abs=1e-6), title


PIPELINE = ["With Transformers; `image` is a PIL image:", "With the classes and prompts of the run:"]
PEFT = ["With PEFT; `image` is a PIL image:", PIPELINE[1]]
HEAD = [PIPELINE[0], "With its linear head:"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PIPELINE),
        ({"caption_template": "a {{b}} {}"}, PIPELINE),
        ({"eval_templates": PROMPTS}, PIPELINE),
        ({"caption_template": PROMPTS}, PIPELINE),
        ({"peft": "lora"}, PEFT),
        ({"peft": "lora", "eval_templates": PROMPTS * 3}, PEFT),
        ({"base_loss": "cross_entropy"}, HEAD),
        ({"base_loss": "cross_entropy", "peft": "lora"}, [PEFT[0], HEAD[1]]),
    ],
)
def test_snippets_get_the_accuracy_that_the_card_claims(config, tmp_path, settings, expected):
    train(config, tmp_path / "run", **settings)
    check(tmp_path / "run", {"plain": named(CLASS_NAMES)}, expected)


def test_more_classes_than_a_line_holds_are_read_from_the_record(config, tmp_path):
    evaluation = {"plain": named(MANY)}
    train(config, tmp_path / "run", train=make_dataset(72, class_names=MANY), evaluation=evaluation)
    check(tmp_path / "run", evaluation, PIPELINE)


def test_all_of_six_classes_are_candidates(config, tmp_path):
    """The demo's model, which does much worse with the prompt that pipelines use by default."""
    evaluation = {"test": make_split("test", size=24)}
    settings = {"caption_template": CAPTION_TEMPLATE, "learning_rate": 1e-5}
    train(config, tmp_path / "run", str(MODEL_FOLDER), make_split("train", size=60), evaluation, **settings)
    names = [str(name) for name in evaluation["test"].features["label"].names]
    assert len(names) == 6
    assert f"labels = {names}" in snippets_of(tmp_path / "run")[0][1]
    check(tmp_path / "run", evaluation, PIPELINE)


@pytest.mark.slow
@pytest.mark.parametrize("base_loss", ["contrastive", "cross_entropy"])
def test_sets_with_other_candidates_have_snippets_of_their_own(config, tmp_path, base_loss):
    features = named(CLASS_NAMES).features.copy()
    features["label"] = ClassLabel(names=["fern", "owl", "truck"])
    rows = named(CLASS_NAMES)
    evaluation = {
        "plain": rows,
        "mapped": named(["snow", "sky"]),
        "part": rows.filter(lambda label: label < 3, input_columns="label").cast(features),
        "others": named(["harbor", "kettle", "photo"]),
    }
    train(config, tmp_path / "run", evaluation=evaluation, mapping={"mapped": [[1, 2], [0, 3]]}, base_loss=base_loss)
    expected = [
        *(PIPELINE if base_loss == "contrastive" else HEAD),
        "On mapped, a label stands for these classes:",
        "On part, only these classes are candidates:",
        "On others, with other classes and the same prompts:",
    ]
    check(tmp_path / "run", evaluation, expected)


@pytest.mark.parametrize("name", ["siglip", "chinese_clip"])
def test_snippets_of_other_families(config, tmp_path, name):
    train(config, tmp_path / "run", model=family(name))
    check(tmp_path / "run", {"plain": named(CLASS_NAMES)}, PIPELINE)


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        (("vit", "roberta"), [PIPELINE[0], PIPELINE[1]]),
        (("efficientnet", "bert"), [PIPELINE[0], PIPELINE[1]]),
        # Transformers does not pool what these towers return.
        (("vit", "distilbert"), PIPELINE[1:]),
        (("resnet", "bert"), PIPELINE[1:]),
    ],
)
def test_snippets_of_two_towers(config, tmp_path, pair, expected):
    train(config, tmp_path / "run", model=towers(*pair))
    check(tmp_path / "run", {"plain": named(CLASS_NAMES)}, expected)


def test_a_run_on_captions_classifies_as_its_evaluation_did(config, tmp_path):
    rows = make_dataset().remove_columns(["label"])
    train(config, tmp_path / "run", train=rows, caption_column="note", label_column="label")
    check(tmp_path / "run", {"plain": named(CLASS_NAMES)}, PIPELINE)


def test_snippets_of_a_folder_load_the_repository_that_it_is_published_to(config, tmp_path):
    sets = {"plain": named(CLASS_NAMES), "shifted": named(CLASS_NAMES)}
    trainer = train(config, tmp_path / "run", evaluation=sets)
    path = tmp_path / "run" / "README.md"
    count = path.read_text().count("'path/to/this/folder'")
    keep_published_edits(tmp_path / "run", None, "lab/owls")
    assert "path/to" not in path.read_text()
    assert path.read_text().count("'lab/owls'") == count > 2
    # That was not an edit by a person.
    trainer.evaluation_results.pop("shifted")
    trainer.create_model_card()
    assert "| shifted |" not in path.read_text()
