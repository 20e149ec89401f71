"""Discovery on the demo's images, where it is known what was planted."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from transformers import AutoProcessor, CLIPModel

from starft_hf import SpuriosityPool, discover_spuriosity, evaluate_zero_shot
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import BACKGROUND_TEMPLATES, UNRELATED_TEMPLATES, make_split
from starft_hf.models.texts import TextEncoding
from starft_hf.spuriosity import discovery
from starft_hf.spuriosity.scorer import class_subspace, merge_alike, readable_template, without_subspace
from tests.support.world import PLANTED


POOL = SpuriosityPool([*BACKGROUND_TEMPLATES, *UNRELATED_TEMPLATES], name="world")


@pytest.fixture(scope="module")
def model():
    return CLIPModel.from_pretrained(MODEL_FOLDER)


@pytest.fixture(scope="module")
def demo_processor():
    return AutoProcessor.from_pretrained(MODEL_FOLDER)


@pytest.fixture
def discover(model, demo_processor):
    def run(dataset, pool=POOL, **settings):
        return discover_spuriosity(model, demo_processor, dataset, pool, progress=False, **settings)

    return run


@pytest.fixture(scope="module")
def found(model, demo_processor):
    return discover_spuriosity(model, demo_processor, make_split("train"), POOL, progress=False)


def templates_of(result, indices):
    return {result.candidates[template] for index in indices for template in result.attributes[index].templates}


@pytest.mark.parametrize("correlation", [pytest.param(value, marks=pytest.mark.slow) for value in (0.95, 0.8, 0.65)])
def test_what_was_planted_comes_first_and_no_control_is_found(discover, correlation):
    for seed in range(10):
        result = discover(make_split("train", seed=seed, correlation=correlation))
        assert templates_of(result, result.found) == PLANTED, seed
        names = {readable_template(template) for template in PLANTED}
        assert [row.attribute in names for row in result.table[:12]] == [True] * 12
        assert all(row.found for row in result.table[:10])


@pytest.mark.slow
def test_nothing_is_found_where_nothing_was_planted(discover):
    for seed in range(10):
        result = discover(make_split("train", seed=seed, correlation=0.5))
        assert result.found == ()
        assert "nothing" in str(result)
        assert not any(row.found for row in result.table)


@pytest.mark.parametrize("correlation", [0.95, 0.5])
def test_templates_that_the_model_cannot_read_are_no_findings(discover, correlation, caplog):
    """The demo's model knows some 70 words, which are all words of four of the built-in templates."""
    discovery.logger.warning_once.cache_clear()
    unknown = ["{} under green neon light.", "{} in tall green grass."]
    result = discover(make_split("train", seed=3, correlation=correlation), [*POOL, *unknown])
    assert "2 of the 32 templates of the spuriosity pool have words that the tokenizer does not know" in caplog.text
    assert set(result.candidates) == set(POOL)
    assert templates_of(result, result.found) == (PLANTED if correlation > 0.5 else set())
    assert len(discover(make_split("train"), "all").candidates) == 4
    with pytest.raises(ValueError, match="does not know words of any template"):
        discover(make_split("train"), unknown)


def test_the_table_says_what_the_dataset_holds(found):
    train = make_split("train")
    on_water = np.array([group.endswith("on water") for group in train["group"]])
    labels = np.array(train["label"])
    for row in (row for row in found.table if row.attribute in ("on the water", "in the sea", "on a blue lake")):
        own = labels == train.features["label"].str2int(row.class_name)
        assert row.effect == pytest.approx(on_water[own].mean() - on_water[~own].mean(), abs=0.05)
        assert row.found
        assert row.p_value <= 0.01
    assert str(found).splitlines()[0] == str(found.table[0])
    first = found.table[0]
    assert str(first) == f"{first.class_name}: {first.attribute} {first.effect:+.2f}"
    text = found.as_markdown()
    assert f"| 1 | yes | {first.class_name} | {first.attribute} |" in text
    assert "| no |" in found.as_markdown(top=1000)
    assert "taken on monday" in text.split("cannot distinguish")[1]


def test_pseudo_groups_are_nearly_the_true_ones(found, model, demo_processor):
    validation = make_split("validation", seed=1)
    groups = found.groups(validation, model, demo_processor)
    home = {"grass class on grass", "water class on water"}
    truth = [
        f"{validation.features['label'].int2str(row['label'])}, {'aligned' if row['group'] in home else 'conflicting'}"
        for row in validation.remove_columns("image")
    ]
    assert np.mean(np.array(groups) == np.array(truth)) > 0.97
    assert adjusted_rand_score(truth, groups) > 0.95
    assert len(found.groups()) == 480

    def worst(names):
        labeled = validation.remove_columns("group").add_column("group", names)
        result = evaluate_zero_shot(model, demo_processor, labeled, group_column="group", progress=False)
        return result.worst_group_accuracy

    assert worst(groups) == pytest.approx(worst(truth), abs=0.03)


def test_without_findings_the_classes_are_the_groups(discover):
    result = discover(make_split("train", correlation=0.5, size=120))
    assert set(result.groups()) == {"circle", "square", "triangle", "star", "cross", "ring"}
    with pytest.raises(ValueError, match="nothing was found"):
        result.pool()


def test_the_pool_holds_what_was_found_with_its_provenance(found, tmp_path):
    pool = found.pool()
    assert set(pool) == PLANTED
    assert (pool.name, pool.source) == ("discovered", "found among the pool 'world'")
    assert pool.metadata["found"][0]["effect"] == pytest.approx(found.table[0].effect, abs=1e-6)
    assert set(found.pool(top=1)) < PLANTED
    pool.save(tmp_path / "pool.json")
    assert SpuriosityPool.load(tmp_path / "pool.json") == pool
    with pytest.raises(ValueError, match="top is 0"):
        found.pool(top=0)


def test_two_classes_are_enough(discover):
    train = make_split("train", size=1200).filter(lambda row: row["label"] < 2)
    result = discover(train, class_names=["circle", "square"])
    assert templates_of(result, result.found) == PLANTED
    balanced = make_split("train", size=1200, correlation=0.5).filter(lambda row: row["label"] < 2)
    assert discover(balanced, class_names=["circle", "square"]).found == ()


def test_the_plain_caption_is_no_attribute(discover):
    result = discover(make_split("train", size=60), ["{}."])
    assert (result.table, result.scorer.excluded) == ([], (0,))


def test_an_aspect_whose_templates_all_say_nothing_has_no_attributes(discover):
    """Alone in an aspect, they would differ from each other as much as backgrounds do."""
    kinds = ("background", BACKGROUND_TEMPLATES), ("circumstances", UNRELATED_TEMPLATES)
    aspects = [aspect for aspect, templates in kinds for _ in templates]
    result = discover(
        make_split("train"), SpuriosityPool([*BACKGROUND_TEMPLATES, *UNRELATED_TEMPLATES], aspects=aspects)
    )
    assert [POOL[index] for index in result.scorer.excluded] == list(UNRELATED_TEMPLATES)
    assert templates_of(result, result.found) == PLANTED


def test_weights_and_restrictions_of_the_candidates_are_kept(discover):
    weights = [1 + index for index in range(len(POOL))]
    classes = [["circle", "triangle"] if "lake" in template else None for template in POOL]
    result = discover(make_split("train"), SpuriosityPool(POOL.templates, weights=weights, classes=classes))
    pool = result.pool()
    for template, weight, names in zip(pool, pool.weights, pool.classes, strict=True):
        assert weight == weights[POOL.templates.index(template)]
        assert names == (frozenset({"circle", "triangle"}) if "lake" in template else None)


def test_files_and_figures(found, discover, tmp_path):
    found.save(tmp_path / "found")
    names = {"discovery.md", "heat_map.png", "examples.png", "pool.json"}
    assert {path.name for path in (tmp_path / "found").iterdir()} == names
    assert (tmp_path / "found" / "examples.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileExistsError):
        found.save(tmp_path / "found")
    effects = found.heat_map(top=3).axes[0].images[0].get_array()
    assert effects.shape == (3, 6)
    assert abs(effects[0]).max() == pytest.approx(0.54, abs=0.03)
    figure = found.examples(rows=2, images=3)
    assert sum(len(axis.images) for axis in figure.axes) == 12
    discover(make_split("train", size=60), list(UNRELATED_TEMPLATES)).save(tmp_path / "nothing")
    assert not (tmp_path / "nothing" / "pool.json").exists()


def test_global_generators_and_the_model_are_left_alone(model, discover):
    model.train()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), [module.training for module in model.modules()]
    discover(make_split("train", size=60), num_workers=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert [module.training for module in model.modules()] == before[2]
    model.eval()


def test_samples_and_streams(discover):
    train = make_split("train")
    sample = discover(train, max_samples=300, seed=2)
    assert len(sample.labels) == len(set(sample.indices)) == 300
    assert sample.indices != discover(train, max_samples=300, seed=3).indices
    # In a folder, rows are sorted by class.
    stream = discover(train.sort("label").to_iterable_dataset(num_shards=32), max_samples=300)
    assert len(set(stream.labels.tolist())) == 6
    assert templates_of(stream, stream.found) == PLANTED
    with pytest.raises(ValueError, match="pass max_samples"):
        discover(train.to_iterable_dataset())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 0.0}, "alpha above 0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"permutations": 50}, "permutations is 50"),
        ({"min_effect": -1}, "min_effect is -1"),
        ({"max_samples": 0}, "max_samples is 0"),
        ({"caption_template": "a photo"}, "exactly one {}"),
        ({"label_column": "kind"}, "no column 'kind'"),
        ({"pool": "wolrd"}, "unknown spuriosity pool"),
    ],
)
def test_wrong_settings_are_refused_before_a_model_is_loaded(settings, words):
    settings = {"pool": POOL} | settings
    with pytest.raises(ValueError, match=words):
        discover_spuriosity("no/model", None, make_split("train", size=12), **settings)


def test_datasets_without_classes_are_refused(discover, found, model):
    train = make_split("train", size=24)
    with pytest.raises(ValueError, match="one class"):
        discover(train.filter(lambda row: row["label"] == 0))
    with pytest.raises(ValueError, match="were searched"):
        found.groups(make_split("held_out", size=4), model)
    with pytest.raises(ValueError, match="zero-shot model"):
        found.groups(train)


def test_rows_that_point_the_same_way_are_merged():
    torch.manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(3, 32), dim=-1)
    rows = centres[[0, 1, 0, 2, 1, 0]] + 0.03 * torch.randn(6, 32)
    assert merge_alike(rows / rows.norm(dim=-1, keepdim=True)) == [[0, 2, 5], [1, 4], [3]]
    assert merge_alike(rows[:1]) == [[0]]
    assert merge_alike(rows[[3, 3]]) == [[0, 1]]


def test_the_class_subspace_holds_what_tells_classes_apart():
    torch.manual_seed(0)
    classes = torch.nn.functional.normalize(torch.randn(4, 64), dim=-1)
    basis = class_subspace(classes)
    assert basis.shape == (3, 64)
    left = without_subspace(classes, basis)
    torch.testing.assert_close(left, left[:1].expand(4, -1), rtol=0, atol=1e-5)
    assert class_subspace(torch.nn.functional.normalize(torch.randn(100, 64), dim=-1)).shape == (8, 64)


@pytest.mark.parametrize(
    ("template", "reads"),
    [
        ("{} on the water.", "on the water"),
        ("a photo of a striped {class}.", "striped"),
        ("a blurry photo of a {class}.", "blurry photo"),
        ("a {class} seen from above.", "seen from above"),
    ],
)
def test_templates_read_as_what_they_add(template, reads):
    assert " ".join(readable_template(template).split()) == reads


def test_of_many_labels_those_with_the_largest_effects_are_drawn(discover):
    names = ["circle", "square", "triangle", "star", "cross", "ring"]
    names += [f"{color} {shape}" for color in ("red", "blue", "green", "black", "white", "navy") for shape in names]
    figure = discover(make_split("train", size=240), class_names=names).heat_map()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(labels) == 24
    assert labels[:6] == names[:6]


def test_names_are_escaped_in_the_table(discover, monkeypatch):
    monkeypatch.setattr(TextEncoding, "knows", lambda *_: True)
    names = ["<script>alert(1)</script>", "a|b [x](javascript:y)", "c` red", "d blue", "e green", "f lake"]
    dataset = make_split("train", size=60)
    names = names[: dataset.features["label"].num_classes]
    pool = [template.replace("{}", "{} <img src=x>") for template in UNRELATED_TEMPLATES[:4]]
    text = discover(dataset, pool, class_names=names).as_markdown()
    assert "<script" not in text
    assert "<img" not in text
    assert "[x](" not in text
