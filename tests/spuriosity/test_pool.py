import json
import pickle
import re

import pytest
import torch
import yaml

from starft_hf import SpuriosityPool
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


def test_an_empty_pool_and_a_bare_string_are_refused():
    with pytest.raises(ValueError, match="empty"):
        SpuriosityPool([])
    with pytest.raises(ValueError, match=r"SpuriosityPool\.load"):
        SpuriosityPool("{} in the snow.")


@pytest.mark.parametrize("name", SpuriosityPool.builtin_names())
def test_builtin_pools_are_sound(name):
    pool = SpuriosityPool.load(name)
    assert len(pool) >= {"background": 60, "texture": 50, "resolution": 25}.get(name, 30)
    assert pool.name == name
    assert pool.source
    assert len({template.lower() for template in pool}) == len(pool)
    for index in range(len(pool)):
        caption = pool.inject("a photo of a dog.", "dog", index)
        assert "dog" in caption
        assert caption.endswith(".")
        assert not set("{}") & set(caption)


def test_no_builtin_template_is_nearly_another():
    """By the words they have in common, but for those that all templates are made of."""
    common = {"a", "an", "the", "of", "in", "on", "with", "to", "by", "its", "from", "at", "photo", "class", "and"}
    templates = list(SpuriosityPool.load("all"))
    words = [frozenset(re.findall(r"[\w'-]+", template.lower())) - common for template in templates]
    assert all(words), [template for template, own in zip(templates, words, strict=True) if not own]
    for index, one in enumerate(words):
        for other in words[:index]:
            assert len(one & other) / len(one | other) < 0.6, (templates[index], one, other)


def test_all_is_the_union_of_the_others():
    union = SpuriosityPool.load("all")
    others = [SpuriosityPool.load(name) for name in SpuriosityPool.builtin_names() if name != "all"]
    assert len(others) == 5
    assert set(union) == {template for pool in others for template in pool}


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
