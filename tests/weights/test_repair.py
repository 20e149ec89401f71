"""`repair`: what it writes is what was compared, and what it cannot work with is refused before the first forward."""

import copy
import json

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from transformers import CLIPModel

from starft_hf import SpuriosityPool, load, repair
from starft_hf.cli.main import main
from starft_hf.data.columns import ColumnSettings, resolve_evaluation_columns
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, Task, make_split
from starft_hf.evaluation.zero_shot import zero_shot_head
from starft_hf.hub.record import RunRecord
from starft_hf.models.adapters import save_temperature, with_adapter
from starft_hf.models.encoder import DualEncoder
from starft_hf.models.heads import HEAD_NAME
from starft_hf.weights.repair import repairing
from starft_hf.weights.repair.candidates import ALPHAS, METHODS, candidates
from starft_hf.weights.repair.embedded import unit, without
from starft_hf.weights.repair.embedding import Embedder, ImageReading, embed
from starft_hf.weights.repair.projections import fold, principal_directions, why_not_foldable
from starft_hf.weights.repair.subject import Subject
from starft_hf.weights.repair.writing import record_of, repaired, write
from tests.support.families import FAMILIES, family


NAMES = ("circle", "square")
POOL = list(BACKGROUND_TEMPLATES[:4])


@pytest.fixture(scope="module")
def validation():
    """20 images of two classes on two places."""
    return make_split("validation", seed=3, size=20, task=Task(NAMES))


@pytest.fixture
def tuned(tmp_path):
    """The demo's model, moved a little, in a folder."""
    model, processor = CLIPModel.from_pretrained(MODEL_FOLDER), load(MODEL_FOLDER).processor
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    model.save_pretrained(tmp_path / "tuned")
    processor.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned"


@pytest.fixture
def settings(tmp_path):
    return {"cache_dir": tmp_path / "features", "progress": False, "group_column": "group", "base": MODEL_FOLDER}


def embeds(model, processor, dataset):
    encoder = DualEncoder.of(model, processor)
    with torch.no_grad():
        images = encoder.encode(model, images=processor(images=list(dataset["image"]), return_tensors="pt"))
        return images, encoder.encode(model, texts=["a photo of a circle.", "an owl in the snow"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_folded_projection_is_the_explicit_one_or_is_not_offered(name, dtype, dataset):
    model, processor = family(name, dtype)
    if name in ("siglip", "siglip2", "align"):
        assert "no linear" in why_not_foldable(model)
        with pytest.raises(ValueError, match="which a projection could become a part of; repair it by a last layer"):
            fold(model, np.eye(3, 24))
        return
    plain = embeds(model, processor, dataset.select(range(4)))
    basis = principal_directions(np.random.default_rng(0).normal(size=(2, plain[0].shape[1])), 2)
    before = copy.deepcopy(model.state_dict())
    for texts in (True, False):
        folded = embeds(fold(model, basis, texts=texts), processor, dataset.select(range(4)))
        for place, (found, own) in enumerate(zip(folded, plain, strict=True)):
            expected = unit(without(own.double().numpy(), basis)) if texts or place == 0 else own.double().numpy()
            np.testing.assert_allclose(found.double(), expected, atol=1e-6 if dtype is torch.float32 else 1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_written_classifies_as_what_was_compared(validation, tmp_path, dtype, head):
    start = CLIPModel.from_pretrained(MODEL_FOLDER, dtype=dtype)
    processor = load(MODEL_FOLDER).processor
    model = copy.deepcopy(start)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    prompts = ("a photo of a {}.", "a picture of a {}.")
    trained = None
    if head:
        trained = zero_shot_head(model, DualEncoder.of(model, processor), NAMES, prompts)
        trained.bias.data += torch.tensor([0.3, -0.2])
    subject = Subject(model, processor, NAMES, prompts, trained, start, None, SpuriosityPool(POOL))
    columns = resolve_evaluation_columns(validation, ColumnSettings(), what="dataset")
    reading = ImageReading(cache_dir=tmp_path / "features", progress=False)
    data = embed(subject, Embedder(subject, validation, columns, reading), np.array(validation["label"]), ALPHAS)
    # A batch of another size may be computed in another order.
    tolerance = 1e-5 if dtype is torch.float32 else 1e-9
    tried = set()
    for candidate in candidates(data):
        if candidate.method in tried:
            continue
        tried.add(candidate.method)
        found = candidate.fit(data, np.arange(len(validation)))
        what = {"method": candidate.method, "settings": {}, "select_by": "worst_class", "images": 20}
        what |= {"gain": 0.1, "standard_error": 0.05}
        scores = {when: {"average": 0.5, "worst_group": 0.4} for when in ("before", "after")}
        record = record_of(subject, {**what, "validation": scores})
        write(repaired(subject, found), record, tmp_path / candidate.method)
        again = load(tmp_path / candidate.method)
        assert again.class_names == NAMES
        assert type(again.model) is CLIPModel
        if dtype is torch.float64:
            again.model.double()
            again.model.load_state_dict(repaired(subject, found).model.state_dict())
        logits = np.log([list(prediction.scores.values()) for prediction in again(list(validation["image"]))])
        expected = data.logits(found)
        np.testing.assert_allclose(
            logits[:, 1] - logits[:, 0], expected[:, 1] - expected[:, 0], rtol=tolerance, atol=100 * tolerance
        )
    assert tried == set(METHODS) - {"DFR"}


def test_a_run_is_repaired_and_says_so(tuned, validation, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(repairing, "choose", lambda data, each, *_, **__: chosen_as("projection", data, each))
    result = repair(tuned, None, validation, output_dir=tmp_path / "repaired", spuriosity=POOL, **settings)
    assert (result.method, result.select_by, result.images) == ("projection", "worst_group", 20)
    assert result.left_out == {}
    record = RunRecord.load(tmp_path / "repaired")
    assert record.repair["method"] == "projection"
    assert record.repair["validation"]["after"]["worst_group"] == result.after.worst_group
    card = (tmp_path / "repaired" / "README.md").read_text()
    assert "### Repair" in card
    assert "the worst group went from" in card
    weights = CLIPModel.from_pretrained(tmp_path / "repaired").visual_projection.weight
    torch.testing.assert_close(weights, result.classifier.model.visual_projection.weight)
    # The second time, images come from the cache.
    monkeypatch.setattr(DualEncoder, "encode", no_images(DualEncoder.encode))
    again = repair(tuned, None, validation, spuriosity=POOL, **settings)
    assert again.as_dict() == {**result.as_dict(), "output_dir": None}


def chosen_as(method, data, each):
    from starft_hf.weights.repair.selection import choose

    index = next(place for place, candidate in enumerate(each) if candidate.method == method)
    choice = choose(data, each)
    return type(choice)(index, index, choice.scores, 0.1, 0.01)


def no_images(encode):
    def without_images(self, model, *, images=None, texts=()):
        assert images is None
        return encode(self, model, texts=texts)

    return without_images


def test_what_is_unknown_is_left_out_and_said(tuned, validation, settings, caplog):
    settings.pop("base")
    result = repair(tuned, None, validation, **settings)
    assert set(result.left_out) == {"WiSE-FT", "AFR, zero-shot errors", "projection", "PRISM-mini"}
    assert "pass base='its id or folder'" in result.left_out["WiSE-FT"]
    assert "repair leaves out 'projection'" in caplog.text
    assert {candidate.method for candidate in result.candidates} == set(METHODS) - set(result.left_out)
    assert "DFR" in {candidate.method for candidate in result.candidates}


def test_without_none_the_best_is_taken(tuned, validation, settings):
    assert repair(tuned, None, validation, methods=["PRISM-mini"], spuriosity=POOL, **settings).method == "PRISM-mini"
    with pytest.raises(
        ValueError, match="none of methods can be tried: projection: no pool is known; pass spuriosity"
    ):
        repair(tuned, None, validation, methods=["projection"], **settings)


@pytest.mark.parametrize("select_by", ["worst_class", "pseudo_groups"])
def test_without_groups_no_last_layer_is_fitted_unasked(tuned, validation, settings, select_by, monkeypatch):
    """It would learn what is correlated with the classes, and the worst class cannot tell."""
    settings.pop("group_column")
    rows = validation.remove_columns("group")
    pool, warned = list(BACKGROUND_TEMPLATES), []
    monkeypatch.setattr(repairing.logger, "warning", lambda text, *values: warned.append(values))
    result = repair(tuned, None, rows, select_by=select_by, spuriosity=pool, **settings)
    assert warned == list(result.left_out.items())
    assert result.select_by == select_by
    found = {candidate.method for candidate in result.candidates}
    assert found == {"none", "logit adjustment", "WiSE-FT", "projection", "PRISM-mini"}
    assert "learn what is correlated with the classes" in result.left_out["last layer"]
    methods = ["last layer", "none"]
    asked = repair(tuned, None, rows, select_by=select_by, spuriosity=pool, methods=methods, **settings)
    assert {candidate.method for candidate in asked.candidates} == set(methods)


@pytest.mark.parametrize("column", ["label", "constant", "of one class"])
def test_groups_that_cannot_show_what_is_correlated_fit_no_last_layer_unasked(tuned, validation, settings, column):
    """A last layer would learn it, and be chosen by groups of which each class has one only."""
    rows = validation.add_column("constant", ["here"] * len(validation))
    home = [str(group if label == 0 else "other") for label, group in zip(rows["label"], rows["group"], strict=True)]
    rows = rows.add_column("of one class", home)
    settings["group_column"] = column
    result = repair(tuned, None, rows, **settings)
    assert result.select_by == "worst_group"
    assert {"last layer", "DFR", "AFR"} <= set(result.left_out)
    assert "are of one group, so that groups cannot show" in result.left_out["last layer"]
    assert not {"last layer", "DFR", "AFR"} & {candidate.method for candidate in result.candidates}
    asked = repair(tuned, None, rows, methods=["last layer", "none"], **settings)
    assert {candidate.method for candidate in asked.candidates} == {"last layer", "none"}


@pytest.mark.parametrize("methods", ["DFR", []])
def test_methods_are_a_list_of_some(tuned, validation, settings, methods):
    with pytest.raises(ValueError, match="pass a list of some of none, "):
        repair(tuned, None, validation, methods=methods, **settings)


def test_a_model_in_memory_with_a_head_is_repaired(tuned, validation, settings):
    loaded = load(tuned)
    head = zero_shot_head(loaded.model, loaded.encoder, NAMES, ["a photo of a {}."])
    loaded.model.add_module(HEAD_NAME, head)
    result = repair(loaded.model, loaded.processor, validation, methods=["WiSE-FT", "logit adjustment"], **settings)
    assert result.classifier.head is not None
    assert not hasattr(result.classifier.model, HEAD_NAME)
    assert loaded.model.classification_head is head


def test_an_adapter_is_repaired_with_its_base_model_as_the_start(validation, settings, tmp_path):
    settings.pop("base")
    adapted = with_adapter(CLIPModel.from_pretrained(MODEL_FOLDER), "lora")
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.add_(0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    save_temperature(adapted, tmp_path / "adapter")
    processor = load(MODEL_FOLDER).processor
    found = [
        repair(model, processor, validation, methods=["WiSE-FT"], class_names=NAMES, **settings)
        for model in (tmp_path / "adapter", adapted)
    ]
    assert not found[0].left_out
    zero_shot = repair(MODEL_FOLDER, processor, validation, methods=["none"], class_names=NAMES, **settings)
    for result in found:
        start = next(each for each in result.candidates if each.settings == {"alpha": 0.0})
        assert start.score.average == zero_shot.before.average
    assert found[0].as_dict() == found[1].as_dict()


def of_one_class(rows):
    return rows.filter(lambda row: row["label"] == 0)


def one_individual(rows):
    return rows.add_column("shown", ["a"] * len(rows))


def with_small_group(rows):
    names = sorted(set(rows["group"]))
    small = rows.filter(lambda row: row["group"] == names[0]).select(range(3))
    return concatenate_datasets([rows.filter(lambda row: row["group"] != names[0]), small])


@pytest.mark.parametrize(
    ("change", "more", "match"),
    [
        (of_one_class, {"group_column": None}, "no images of the class 'square'"),
        (with_small_group, {}, "has 3 images of the group .* takes at least 5 of every group"),
        (lambda rows: None, {}, "dataset is a NoneType; pass a validation split"),
        (lambda rows: {"validation": rows}, {}, "dataset is a dict; pass a validation split"),
        (lambda rows: rows, {"select_by": "worst"}, "unknown select_by 'worst'"),
        (lambda rows: rows, {"group_column": None, "select_by": "worst_group"}, "needs groups"),
        (lambda rows: rows, {"select_by": "pseudo_groups"}, "pass base, the model before fine-tuning, and spuriosity"),
        (lambda rows: rows, {"cluster_column": "bird"}, "has no column 'bird'; .* Set cluster_column"),
        (lambda rows: rows, {"cluster_column": "label"}, "all images of the class 'circle' have one value"),
        (one_individual, {"cluster_column": "shown"}, "all images of the class 'circle' have one value"),
        (lambda rows: rows, {"methods": ["last-layer"]}, "unknown method 'last-layer'. Did you mean 'last layer'"),
    ],
)
def test_what_cannot_be_repaired_is_refused_before_a_forward(
    tuned, validation, settings, monkeypatch, change, more, match
):
    def encode(*args, **kwargs):
        raise AssertionError("a forward")

    monkeypatch.setattr(DualEncoder, "encode", encode)
    with pytest.raises(ValueError, match=match):
        repair(tuned, None, change(validation), **{**settings, **more})


def test_nothing_is_overwritten_and_another_start_is_refused(tuned, validation, settings):
    with pytest.raises(FileExistsError, match="would be overwritten"):
        repair(tuned, None, validation, output_dir=tuned, **settings)
    other, _ = family("clip")
    with pytest.raises(ValueError, match="the models differ"):
        repair(tuned, None, validation, **{**settings, "base": other})


def test_the_command(tuned, validation, tmp_path, capsys):
    from datasets import DatasetDict

    validation = validation.sort("label").add_column("individual", [row // 2 for row in range(20)])
    DatasetDict(train=validation, validation=validation).save_to_disk(tmp_path / "data")
    command = ["repair", str(tuned), str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--json"]
    flags = ["--base", str(MODEL_FOLDER), "--group_column", "group", "--cache_dir", str(tmp_path / "features")]
    flags += ["--cluster_column", "individual"]
    assert main([*command, *flags, "--methods", "WiSE-FT", "last layer"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] in ("none", "WiSE-FT", "last layer")
    for when in ("before", "after"):
        assert 0 <= found["validation"][when]["worst_group"] <= found["validation"][when]["average"] <= 1
    assert {"method", "average", "worst_group"} <= set(found["candidates"][0])
    assert load(tmp_path / "out").class_names == NAMES


def test_a_dataset_without_a_validation_split_is_refused(tuned, validation, tmp_path, capsys):
    from datasets import DatasetDict

    DatasetDict(train=validation, test=validation).save_to_disk(tmp_path / "data")
    assert main(["repair", str(tuned), str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]) == 2
    assert "has no split for validation, only train, test; pass --split" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
