"""Tables of images that may have several classes, in every form that is read."""

import csv
import json

import pytest
from datasets import ClassLabel, List

from starft_hf.data.columns import ColumnSettings, resolve_columns
from starft_hf.data.loading import load_splits
from tests.support.multi_label import make_multi_label_dataset
from tests.support.tiny import CLASS_NAMES


def write(folder, kind, size=8):
    """A folder of images with a table; returns the names of the classes of every image."""
    rows = make_multi_label_dataset(size, form="names")
    folder = folder / "train"
    folder.mkdir(parents=True)
    classes = {}
    for index, row in enumerate(rows):
        row["image"].save(folder / f"{index}.png")
        classes[f"{index}.png"] = row["label"]
    table = folder / ("_classes.csv" if kind == "Roboflow" else "metadata.csv")
    if kind == "JSON Lines":
        lines = [json.dumps({"file_name": name, "label": own}) for name, own in classes.items()]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        return classes
    if kind == "COCO":
        names = list(classes)
        content = {
            "images": [{"id": place, "file_name": name} for place, name in enumerate(names)],
            "categories": [{"id": place, "name": name} for place, name in enumerate(CLASS_NAMES)],
            "annotations": [
                {"image_id": names.index(name), "category_id": CLASS_NAMES.index(one)}
                for name, own in classes.items()
                for one in own
            ],
        }
        (folder / "objects.json").write_text(json.dumps(content))
        return classes
    written = {
        "bars": [["file_name", "label"], *([name, "|".join(own)] for name, own in classes.items())],
        "rows": [["file_name", "label"], *([name, one] for name, own in classes.items() for one in own or [""])],
        "Roboflow": [
            ["filename", *CLASS_NAMES],
            *([name, *(int(one in own) for one in CLASS_NAMES)] for name, own in classes.items()),
        ],
    }
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(written[kind])
    return classes


@pytest.mark.parametrize("kind", ["JSON Lines", "bars", "rows", "Roboflow", "COCO"])
def test_tables_name_several_classes(tmp_path, kind):
    expected = write(tmp_path, kind)
    rows = load_splits(tmp_path, multi_label=True, validation_split=0)["train"]
    assert rows.features["label"] == List(ClassLabel(names=sorted(CLASS_NAMES)))
    columns = resolve_columns(rows, ColumnSettings(multi_label=True), what="the split")
    # Images are read by the order of the table.
    found = [{columns.class_names[index] for index in columns.classes_of(row)} for row in rows]
    assert found == [set(own) for own in expected.values()]


def test_lists_are_refused_where_images_have_one_class(tmp_path):
    write(tmp_path, "JSON Lines")
    rows = load_splits(tmp_path, validation_split=0)["train"]
    with pytest.raises(ValueError, match=r"multi-label.*base_loss='multi_label'"):
        resolve_columns(rows, ColumnSettings(), what="the split")


def test_rows_of_an_image_that_differ_in_another_column_are_refused(tmp_path):
    write(tmp_path, "rows", 2)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label,place\n0.png,owl,land\n0.png,fern,water\n")
    with pytest.raises(ValueError, match=r"lists the image .*0\.png repeatedly, with different values of 'place'"):
        load_splits(tmp_path, multi_label=True)
