import json
import pickle
import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
import yaml

from starft_hf import SpuriosityPool
from starft_hf.data.captions import CaptionBank
from starft_hf.spuriosity.answers import are_near
from starft_hf.spuriosity.pool import as_pool


def test_injection_drops_only_a_final_full_stop():
    pool = SpuriosityPool(["{} in the snow.", "a photo of a striped {class}."])
    assert pool.inject("a photo of a dog.", "dog", 0) == "a photo of a dog in the snow."
    assert pool.inject("a photo of a dog", "dog", 0) == "a photo of a dog in the snow."
    assert pool.inject("a photo of a St. Bernard. ", "St. Bernard", 0) == "a photo of a St. Bernard in the snow."
    assert pool.inject("a photo of a dog.", "dog", 1) == "a photo of a striped dog."
    with pytest.raises(ValueError, match=r"striped \{class\}.*no labels"):
        pool.inject("a photo of a dog.", None, 1)


@pytest.mark.parametrize("template", ["in the snow", "{} and {}", "{class} {}", "{class} {class}", 3])
def test_templates_without_exactly_one_placeholder_are_refused_by_name(template):
    with pytest.raises(ValueError, match="exactly one placeholder") as error:
        SpuriosityPool(["{} fine.", template])
    assert repr(template) in str(error.value)


@pytest.mark.parametrize(
    ("templates", "called"), [([], "empty"), ("{} in the snow.", "'{} in the snow.'"), (None, "None"), (3, "3")]
)
def test_what_is_not_a_list_of_templates_is_refused(templates, called):
    with pytest.raises(ValueError, match=rf"pool is {re.escape(called)}; pass a list .*SpuriosityPool\.load"):
        SpuriosityPool(templates)


@pytest.mark.parametrize("name", SpuriosityPool.builtin_names())
def test_builtin_pools_are_sound(name):
    pool = SpuriosityPool.load(name)
    assert len(pool) >= {"background": 60, "texture": 50, "resolution": 25}.get(name, 30)
    assert pool.name == name
    assert pool.source
    assert pool.description
    assert "\n" not in pool.description
    assert len({template.lower() for template in pool}) == len(pool)
    for index in range(len(pool)):
        caption = pool.inject("a photo of a dog.", "dog", index)
        assert "dog" in caption
        assert caption.endswith(".")
        assert not set("{}") & set(caption)


def test_no_builtin_template_is_nearly_another():
    pairs = combinations(SpuriosityPool.load("all"), 2)
    assert [(one, other) for one, other in pairs if are_near(one, other)] == []


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("{} on the sandy beach.", "{} on sandy beaches.", True),
        ("{} on a beach.", "{} on a sandy beach.", True),
        ("a photo of a frosted {class}.", "{} covered in frost.", True),
        ("{} in a flower garden.", "{} in a vegetable garden.", False),
        ("{} under a tree.", "{} behind a tree.", False),
        ("a photo of a muddy {class}.", "{} in a muddy field.", False),
    ],
)
def test_near_duplicates_share_their_content_words(one, other, near):
    assert are_near(one, other) == are_near(other, one) == near


def test_all_is_the_union_of_the_others():
    union = SpuriosityPool.load("all")
    others = [SpuriosityPool.load(name) for name in SpuriosityPool.builtin_names() if name != "all"]
    assert len(others) == 5
    assert set(union) == {template for pool in others for template in pool}
    about = dict(zip(union, union.aspects, strict=True))
    assert about["{} in the snow."] == "background"
    # What is about the light is not about the resolution, whatever pool it is in.
    own = {"light", "quality", "view", "weather"}
    assert {about[template] for template in SpuriosityPool.load("resolution")} == own
    assert set(about.values()) == {"background", "texture", "objects", "style", *own}


def test_what_is_saved_is_loaded(tmp_path):
    pool = SpuriosityPool(["{} in the café.", "{} at night."], name="mine", source="the lab's notes")
    pool.save(tmp_path / "folder" / "pool.json")
    loaded = SpuriosityPool.load(tmp_path / "folder" / "pool.json")
    assert loaded == pool
    assert (loaded.name, loaded.source) == ("mine", "the lab's notes")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["pool.json"]


TEMPLATES = ["{} in the snow.", "{} at night."]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("pool.json", lambda path: path.write_text(json.dumps(TEMPLATES))),
        ("pool.yaml", lambda path: path.write_text(yaml.safe_dump({"templates": TEMPLATES}))),
        ("pool.yml", lambda path: path.write_text(yaml.safe_dump(TEMPLATES))),
        ("pool.txt", lambda path: path.write_text("\n".join([TEMPLATES[0], "", TEMPLATES[1]]))),
        ("pool.pt", lambda path: torch.save(TEMPLATES, path)),
    ],
)
def test_plain_lists_in_files(tmp_path, name, write):
    write(tmp_path / name)
    assert list(SpuriosityPool.load(tmp_path / name)) == TEMPLATES
    assert list(as_pool(tmp_path / name)) == TEMPLATES


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


@pytest.mark.parametrize(
    "dump", [lambda path: torch.save(Bomb(), path), lambda path: path.write_bytes(pickle.dumps(Bomb()))]
)
def test_a_file_with_objects_in_it_is_refused_without_running_them(tmp_path, monkeypatch, dump):
    monkeypatch.chdir(tmp_path)
    dump(tmp_path / "pool.pt")
    with pytest.raises(ValueError, match="could not be read as a spuriosity pool"):
        SpuriosityPool.load("pool.pt")
    assert not (tmp_path / "exploded").exists()


def test_unknown_names_get_the_nearest_one(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'background'"):
        SpuriosityPool.load("backgruond")
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        SpuriosityPool.load(tmp_path / "missing.json")
    (tmp_path / "pool.csv").write_text("x")
    with pytest.raises(ValueError, match=r"'\.csv'"):
        SpuriosityPool.load(tmp_path / "pool.csv")
    (tmp_path / "bad.json").write_text('{"templates": [1, 2]}')
    with pytest.raises(ValueError, match="list of strings"):
        SpuriosityPool.load(tmp_path / "bad.json")


def generators(count=4000):
    return (np.random.default_rng((7, index)) for index in range(count))


def test_without_weights_and_restrictions_the_draw_is_one_integer_of_the_generator():
    pool = SpuriosityPool(TEMPLATES * 3)
    expected = [int(generator.integers(6)) for generator in generators(50)]
    assert [pool.draw(generator, "dog") for generator in generators(50)] == expected


def test_templates_are_drawn_by_their_weights_and_for_their_classes():
    pool = SpuriosityPool(
        ["{} in the snow.", "{} at night.", "{} at sea."], weights=[1, 3, 4], classes=[None, None, ["water_bird"]]
    )
    of_bird = Counter(pool.draw(generator, "water bird") for generator in generators())
    of_dog = Counter(pool.draw(generator, "dog") for generator in generators())
    assert [of_bird[index] / 4000 for index in range(3)] == pytest.approx([0.125, 0.375, 0.5], abs=0.03)
    assert [of_dog[index] / 4000 for index in range(3)] == pytest.approx([0.25, 0.75, 0], abs=0.03)
    assert of_dog[2] == 0
    assert pool.eligible(None) == (0, 1)


def test_a_class_without_a_template_is_named():
    pool = SpuriosityPool(TEMPLATES, name="mine", classes=[["dog"], ["dog", "cat"]])
    pool.check_classes(["dog", "cat"])
    with pytest.raises(ValueError, match=r"'mine' has no template for class 'owl' \(and 1 more"):
        pool.check_classes(["dog", "owl", "fern"])
    with pytest.raises(ValueError, match="rows without a label"):
        pool.check_classes(None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": [1]}, "1 entries for 2 templates"),
        ({"weights": [1, 0]}, r"0 for the template '\{\} at night\.'"),
        ({"weights": [1, float("nan")]}, "positive number"),
        ({"weights": [1, "2"]}, "positive number"),
        ({"classes": [None, "dog"]}, "list of class names"),
        ({"classes": [None, []]}, "list of class names"),
    ],
)
def test_wrong_weights_and_restrictions_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SpuriosityPool(TEMPLATES, **settings)


def test_weights_restrictions_and_provenance_survive_a_file(tmp_path):
    pool = SpuriosityPool(
        TEMPLATES,
        name="mine",
        weights=[1, 2.5],
        classes=[["fire_truck", "dog"], None],
        aspects=["weather", None],
        description="Weather.",
        metadata={"prompts": ["?"]},
    )
    pool.save(tmp_path / "pool.json")
    loaded = SpuriosityPool.load(tmp_path / "pool.json")
    assert loaded == pool
    assert loaded != SpuriosityPool(TEMPLATES)
    assert (loaded.weights, loaded.classes) == ((1, 2.5), (frozenset({"fire truck", "dog"}), None))
    assert (loaded.aspects, loaded.description, loaded.metadata) == (("weather", None), "Weather.", pool.metadata)
    entry = json.loads((tmp_path / "pool.json").read_text())["templates"][0]
    assert entry == {"template": TEMPLATES[0], "weight": 1, "classes": ["dog", "fire truck"], "aspect": "weather"}
    (tmp_path / "bad.json").write_text('[{"template": "{} fine.", "wieght": 2}]')
    with pytest.raises(ValueError, match="Did you mean 'weight'"):
        SpuriosityPool.load(tmp_path / "bad.json")


def test_captions_of_a_restricted_pool_have_ids_without_gaps():
    pool = SpuriosityPool(["{} in the snow.", "{} at sea.", "{} at night."], classes=[None, ["owl"], None])
    bank = CaptionBank(["dog", "owl"], ["a photo of a {}.", "a drawing of a {}."], pool)
    captions = list(bank.spurious_captions())
    assert len(captions) == bank.num_spurious_captions == 2 * 2 + 2 * 3
    assert "a photo of a dog at sea." not in captions
    for index, caption in enumerate(captions):
        assert bank.spurious_id(*bank.parts_of(index)) == index
        assert bank.spurious_caption(*bank.parts_of(index)) == caption
