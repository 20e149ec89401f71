"""Tables of predictions: whatever the data, in one process or several, interrupted or not."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, List
from peft import get_peft_model

from starft_hf import load, predict
from starft_hf.data.all_images import read_all_images
from starft_hf.hub.prediction.rows import file_names
from starft_hf.hub.prediction.table import top_classes
from starft_hf.models.adapters import resolve_peft_config
from starft_hf.models.heads import head_from_weights, save_head
from tests.support.folders import write
from tests.support.shards import encoded, write_tar
from tests.support.tiny import CLASS_NAMES, TINY_CLIP, make_dataset


QUIET = {"progress": False, "class_names": CLASS_NAMES}


@pytest.fixture(scope="module")
def classifier():
    return load(TINY_CLIP).with_classes(CLASS_NAMES)


def as_tuples(table, *columns):
    return list(zip(*(table[column][:] for column in columns), strict=True))


def test_probabilities_are_those_of_the_loaded_model(classifier, dataset):
    expected = classifier(list(dataset["image"]))
    for batch_size in (24, 7):
        table = predict(classifier, dataset, batch_size=batch_size, progress=False)
        assert table.column_names[:4] == ["row", "prediction", "confidence", "top_2"]
        assert table.column_names[4:9] == [
            "top_2_confidence",
            "top_3",
            "top_3_confidence",
            "top_4",
            "top_4_confidence",
        ]
        for row, one in zip(table, expected, strict=True):
            names = [row["prediction"], *(row[f"top_{place}"] for place in (2, 3, 4))]
            scores = [row["confidence"], *(row[f"top_{place}_confidence"] for place in (2, 3, 4))]
            assert names == sorted(one.scores, key=one.scores.get, reverse=True)
            assert scores == pytest.approx([one.scores[name] for name in names], abs=1e-6)
    assert predict(classifier, dataset, top_k=1, progress=False).column_names == [
        *("row", "prediction", "confidence", "label")
    ]
    assert table["label"][:] == [CLASS_NAMES[label] for label in dataset["label"]]


def test_of_equal_probabilities_the_class_that_comes_first_is_first():
    assert top_classes(torch.full((2, 5), 0.2), 3).tolist() == [[pytest.approx(0.2)] * 3 + [0, 1, 2]] * 2


# What is written to a folder, what of it is classified, and the files, labels and splits that are expected.
TWO = {"x/a.png": None, "x/b.png": None}
FOLDERS = {
    "flat, in the order of paths": (["b.png", "a.png", "10.png", ".c.png", "notes.txt"], ".", "10.png a.png b.png"),
    "nested": (["b.png", "x/y/a.png"], ".", "b.png x/y/a.png"),
    "folders that are no classes": (["2023/b.png", "2024/a.png"], ".", "2023/b.png 2024/a.png"),
    "class folders": (["owl/b.png", "fern/a.png"], ".", "fern/a.png=fern owl/b.png=owl"),
    "class folders and others": (["owl/b.png", "fern/a.png", "c.png"], ".", "c.png fern/a.png=fern owl/b.png=owl"),
    "splits": (
        ["train/owl/b.png", "train/fern/a.png", "test/owl/c.png", "test/fern/a.png", "d.png"],
        ".",
        "train/fern/a.png=fern@train train/owl/b.png=owl@train "
        "test/fern/a.png=fern@test test/owl/c.png=owl@test d.png",
    ),
    "a single image": (["x/a.png", "x/b.png"], "x/b.png", "b.png"),
    "a table of paths": ({**TWO, "t.csv": "path\nx/b.png\nx/a.png\nx/b.png\n"}, "t.csv", "x/b.png x/a.png"),
    "a table without a heading": ({**TWO, "t.csv": "x/b.png\nx/a.png\n"}, "t.csv", "x/b.png x/a.png"),
    "a list": ({"a.png": None, "b c.png": None, "paths.txt": "b c.png\na.png\n"}, "paths.txt", "b c.png a.png"),
    "a table of some labels": (
        {"a.png": None, "b.png": None, "t.jsonl": '{"file_name": "b.png", "label": "owl"}\n{"file_name": "a.png"}\n'},
        "t.jsonl",
        "b.png=owl a.png",
    ),
    "a table elsewhere": ({**TWO, "y/t.csv": "path\n../x/b.png\n../x/a.png\n"}, "y/t.csv", "../x/b.png ../x/a.png"),
    "metadata beside images that it does not list": (
        {"a.png": None, "b.png": None, "c.png": None, "metadata.csv": "file_name,label\nc.png,owl\nb.png,fern\n"},
        ".",
        "a.png b.png=fern c.png=owl",
    ),
}


def found_in(table):
    """Files with their labels and splits, as `FOLDERS` has them."""
    parts = []
    for row in table:
        label, split = row.get("label"), row.get("split")
        parts.append(row["file"].replace(" ", "_") + (f"={label}" if label else "") + (f"@{split}" if split else ""))
    return " ".join(parts)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_image_of_a_folder_or_a_table_has_a_row(name, classifier, tmp_path):
    files, source, expected = FOLDERS[name]
    write(tmp_path, files)
    table = predict(classifier, tmp_path / source, top_k=1, progress=False)
    assert found_in(table) == expected.replace("b c", "b_c")
    assert None not in table["prediction"][:]
    assert str(tmp_path) not in table.to_pandas().to_string()


def test_a_table_of_absolute_paths_names_no_place_of_the_machine(classifier, tmp_path):
    write(tmp_path, ["y/z/a.png", "y/b.png"])
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "t.csv").write_text(f"image\n{tmp_path}/y/b.png\n{tmp_path}/y/z/a.png\n")
    assert predict(classifier, tmp_path / "x" / "t.csv", progress=False)["file"][:] == ["b.png", "z/a.png"]


def write_kinds(folder, rows):
    """The same images in every other kind of data."""
    rows.save_to_disk(folder / "saved")
    DatasetDict(train=rows.select(range(4)), test=rows.select(range(4, 6))).save_to_disk(folder / "splits")
    rows.to_parquet(folder / "rows.parquet")
    write_tar(folder / "train-0.tar", {f"sub/{place}.png": encoded(row["image"]) for place, row in enumerate(rows)})
    paths = Dataset.from_dict({"img": [str(folder / "photos" / f"{place}.png") for place in range(6)]})
    (folder / "photos").mkdir()
    for place, row in enumerate(rows):
        row["image"].save(folder / "photos" / f"{place}.png")
    paths.cast_column("img", Image()).save_to_disk(folder / "referring")


KINDS = {
    "saved": {},
    "splits": {},
    "rows.parquet": {},
    "train-0.tar": {"file": [f"train-0.tar/sub/{place}.png" for place in range(6)]},
    "referring": {"file": [f"{place}.png" for place in range(6)]},
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    write_kinds(folder, make_dataset(6))
    return folder


@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "streaming"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_in_every_kind_of_data(kind, streaming, kinds, classifier):
    images = read_all_images(kinds / kind, streaming=streaming)
    table = predict(classifier, images, progress=False)
    expected = predict(classifier, make_dataset(6), progress=False)
    assert as_tuples(table, "prediction", "confidence") == as_tuples(expected, "prediction", "confidence")
    first = KINDS[kind] or {"row": list(range(6))}
    assert {name: table[name][:] for name in table.column_names[:1]} == first
    if kind in ("saved", "splits", "rows.parquet"):
        assert table["label"][:] == expected["label"][:]
    assert ("split" in table.column_names) == (kind == "splits")


def test_rows_of_a_stream_without_features_and_of_a_dataset_of_ones_own(classifier):
    rows = list(make_dataset(5).select_columns(["image", "label"]))
    expected = predict(classifier, make_dataset(5), progress=False)

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows)

    for own in (Rows(), rows):
        table = predict(classifier, own, progress=False)
        assert as_tuples(table, *table.column_names) == as_tuples(expected, *expected.column_names)
    assert "label" not in predict(classifier, [{"image": row["image"]} for row in rows], progress=False).column_names
    with pytest.raises(ValueError, match="empty"):
        predict(classifier, [])


def test_a_model_that_gives_nan_is_refused(classifier, dataset, monkeypatch):
    monkeypatch.setattr(type(classifier), "probabilities", lambda self, images, dtype: torch.full((24, 4), torch.nan))
    with pytest.raises(ValueError, match="probabilities that are NaN"):
        predict(classifier, dataset, progress=False)


@pytest.mark.parametrize(
    ("paths", "root", "names"),
    [
        (["/a/b/1.png", "/a/b/c/2.png"], "/a/b", ["1.png", "c/2.png"]),
        (["/a/b/1.png", "/a/x/2.png"], "/a/b", ["b/1.png", "x/2.png"]),
        (["/a/b/../x/1.png", "/a/b/2.png"], "/a/b", ["../x/1.png", "2.png"]),
        (["/a/b/1.png"], None, ["1.png"]),
        (["1.png", "x/1.png"], "/a", ["1.png", "x/1.png"]),
        (["zip://x/1.png::/a/p.zip", "zip://x/1.png::/a/q.zip"], "/a", ["p.zip/x/1.png", "q.zip/x/1.png"]),
        (["tarslice://0-5/x/a%20b.png::/a/p.tar"], "/a", ["p.tar/x/a b.png"]),
        (["https://h.org/x/1.png", "https://h.org/x/y/2.png"], None, ["1.png", "y/2.png"]),
        (["1.png", "1.png"], None, None),
        (["1.png", None], None, None),
    ],
)
def test_names_of_files(paths, root, names):
    assert file_names(paths, root and Path(root)) == names


def test_labels_and_groups_that_are_partly_known(classifier):
    rows = make_dataset(4).remove_columns(["label", "group"])
    rows = rows.add_column("label", [0, -1, None, 3]).add_column("place", ["sea", None, "land", "sea"])
    table = predict(classifier, rows, group_column=["label", "place"], progress=False)
    expected = [("owl", "owl x sea"), (None, None), (None, None), ("fern", "fern x sea")]
    assert as_tuples(table, "label", "group") == expected
    # Numbers that are not positions in the classes stay as they are.
    more = rows.remove_columns("label").add_column("label", [0, 3, None, 9])
    assert predict(classifier, more, progress=False)["label"][:] == ["0", "3", None, "9"]
    # Labels may be of more or other classes than those of the model.
    other = rows.remove_columns("label").add_column("label", ["owl", "kettle", None, "fern"])
    assert predict(classifier, other, progress=False)["label"][:] == ["owl", "kettle", None, "fern"]


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_the_file_has_what_is_returned(ending, classifier, tmp_path):
    write(tmp_path / "data", ["a,b.png", 'c"d.png', "ü\né.png"])
    output = tmp_path / "new" / f"out{ending}"
    table = predict(classifier, tmp_path / "data", output=output, progress=False)
    if ending == ".jsonl":
        read = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    else:
        read = (pd.read_csv if ending == ".csv" else pd.read_parquet)(output).to_dict("records")
    assert read == table.to_list()
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        predict(classifier, tmp_path / "nowhere", output=output)


def test_images_that_cannot_be_read(classifier, tmp_path):
    write(
        tmp_path, {"a.png": None, "b.png": b"no image", "t.csv": "file,label\nb.png,owl\ngone.png,fern\na.png,owl\n"}
    )
    for source in (tmp_path, tmp_path / "t.csv"):
        with pytest.raises(ValueError, match=r"b\.png"):
            predict(classifier, source, progress=False)
    settings = {"on_bad_image": "skip", "output": tmp_path / "out.csv", "progress": False}
    table = predict(classifier, tmp_path / "t.csv", **settings)
    assert as_tuples(table, "file", "label") == [("b.png", "owl"), ("gone.png", None), ("a.png", "owl")]
    assert [found is None for found in table["prediction"][:]] == [True, True, False]
    assert [found is None for found in table["top_2_confidence"][:]] == [True, True, False]
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "b.png,,,,,,,,,owl"


def with_head(folder):
    shutil.copytree(TINY_CLIP, folder)
    head = head_from_weights(torch.randn(3, load(TINY_CLIP).model.config.projection_dim))
    save_head(head.state_dict(), ["x", "y", "z"], folder)
    return folder


def with_lora(folder):
    model = load(TINY_CLIP).model
    adapted = get_peft_model(model, resolve_peft_config("lora", model))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(TINY_CLIP)}))
    return folder


def test_heads_and_adapters(dataset, tmp_path):
    head, adapter = with_head(tmp_path / "head"), with_lora(tmp_path / "adapter")
    images = list(dataset["image"])
    assert predict(head, dataset, progress=False)["prediction"][:] == [one.label for one in load(head)(images)]
    plain, adapted = predict(TINY_CLIP, dataset, **QUIET), predict(adapter, dataset, **QUIET)
    assert adapted["confidence"][:] == pytest.approx(
        [one.score for one in load(adapter).with_classes(CLASS_NAMES)(images)], abs=1e-6
    )
    assert adapted["confidence"][:] != pytest.approx(plain["confidence"][:], abs=1e-4)
    with pytest.raises(ValueError, match="linear head over its own 3 classes"):
        predict(head, dataset, **QUIET)
    assert predict(head, dataset, use_head=False, **QUIET)["confidence"][:] == plain["confidence"][:]
    # Without classes of its own, a model takes those of the labels.
    assert predict(TINY_CLIP, dataset, progress=False)["confidence"][:] == plain["confidence"][:]
    with pytest.raises(ValueError, match="no classes of its own, and the images no labels"):
        predict(TINY_CLIP, dataset.remove_columns("label"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": "3"}, "top_k is '3'; it must be a positive integer"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"dtype": torch.float64}, "dtype is torch.float64"),
        ({"output": "out.xlsx"}, "must end with .csv, .parquet or .jsonl"),
        ({"image_column": "img"}, "no column 'img'; its columns are"),
        ({"group_column": "place"}, "no column 'place'"),
        ({"label_column": "lab"}, "no column 'lab'"),
        ({"on_bad_image": "ignore"}, "ignore"),
        ({"class_names": ["a", "a"]}, "duplicates"),
    ],
)
def test_what_is_wrong_is_found_before_a_model_is_loaded(changes, match, dataset):
    with pytest.raises(ValueError, match=match):
        predict("nowhere/at-all", dataset, **changes)


def test_several_classes_of_an_image_are_one_cell(classifier, dataset):
    rows = dataset.select(range(3)).remove_columns("label")
    words = rows.add_column("label", [["owl", "fern"], ["owl"], []])
    numbers = words.cast_column("label", List(ClassLabel(names=["fern", "owl"])))
    for several in (words, numbers):
        assert predict(classifier, several, progress=False)["label"][:] == ["owl|fern", "owl", ""]


def test_labels_of_a_class_label_column_keep_their_own_names(classifier):
    rows = make_dataset(4).cast_column("label", ClassLabel(names=["a", "b", "c", "d"]))
    assert predict(classifier, rows, progress=False)["label"][:] == ["a", "b", "c", "d"]
