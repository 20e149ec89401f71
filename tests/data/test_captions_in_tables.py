"""Tables and lists with captions, as those of Flickr8k and Flickr30k, and labels of which captions are no part."""

import json
from pathlib import Path

import pytest
from datasets import Image

from starft_hf.data.loading import load_splits, read_data
from tests.support.folders import names_of, rows_of, table, write


IMAGES = [f"Images/{number}.jpg" for number in range(6)]
NUMBERS = range(3)


def caption(image, number):
    return f"A dog , number {number} , on hill {image} ."


def in_rows(form):
    return [
        form.format(image=image, number=number, caption=caption(image, number))
        for image in range(6)
        for number in NUMBERS
    ]


def paths_of(rows):
    """The paths of the images, without decoding these."""
    return [row["path"] for row in rows.cast_column("image", Image(decode=False))["image"]]


def captions_of(found, column="caption"):
    """The captions of every image, by its name."""
    texts = {}
    for rows in found.splits.values():
        for path, text in zip(paths_of(rows), rows[column], strict=True):
            texts.setdefault(int(Path(path).stem), set()).add(text)
    return texts


EXPECTED = {image: {caption(image, number) for number in NUMBERS} for image in range(6)}


@pytest.mark.parametrize(
    ("name", "heading", "form"),
    [
        ("captions.txt", "image,caption", '{image}.jpg,"{caption}"'),
        ("captions.txt", "image_name,comment_number,comment", '{image}.jpg,{number},"{caption}"'),
        ("results.csv", "image_name| comment_number| comment", "{image}.jpg| {number}| {caption}"),
        ("data.csv", "filepath\ttitle", "{image}.jpg\t{caption}"),
        ("data.tsv", "sentences\tfile", "{caption}\t{image}.jpg"),
        ("Flickr8k.token.txt", None, "{image}.jpg#{number}\t{caption}"),
    ],
)
def test_tables_of_captions(tmp_path, name, heading, form):
    lines = in_rows(form)
    content = table(heading, lines) if heading else "\n".join(lines)
    found = read_data(write(tmp_path, {**dict.fromkeys(IMAGES), name: content}))
    assert captions_of(found) == EXPECTED
    assert not found.left_out
    assert all("label" not in rows.column_names for rows in found.splits.values())
    # All captions of an image are on one side.
    images = [{*paths_of(rows)} for rows in found.splits.values()]
    assert rows_of(found) == {"train": 15, "validation": 3}
    assert not set.intersection(*images)


def test_a_row_without_a_caption_is_left_out(tmp_path):
    # As one of Flickr30k, which lacks a separator.
    lines = [*in_rows("{image}.jpg| {number}| {caption}"), "2.jpg| 3   A dog runs ."]
    content = table("image_name| comment_number| comment", lines)
    found = read_data(write(tmp_path, {**dict.fromkeys(IMAGES), "results.csv": content}))
    assert captions_of(found) == EXPECTED
    assert found.left_out == {"results.csv: row 19 of Images/2.jpg": "it has no caption"}


def test_lists_of_splits_divide_captions(tmp_path):
    lists = {"train": range(4), "dev": (4,), "test": (5,)}
    texts = {
        f"Flickr8k_text/Flickr_8k.{split}Images.txt": "".join(f"{image}.jpg\n" for image in images)
        for split, images in lists.items()
    }
    texts["Flickr8k_text/Flickr8k.token.txt"] = "\n".join(in_rows("{image}.jpg#{number}\t{caption}"))
    found = read_data(write(tmp_path, {**dict.fromkeys(IMAGES), **texts}))
    assert rows_of(found) == {"train": 12, "validation": 3, "test": 3}
    assert captions_of(found) == EXPECTED


def test_a_column_that_is_asked_for_keeps_its_name(tmp_path):
    lines = [json.dumps({"file_name": f"{image}.jpg", "text": caption(image, 0), "note": "x"}) for image in range(6)]
    folder = write(
        tmp_path, {**dict.fromkeys(f"{image}.jpg" for image in range(6)), "metadata.jsonl": "\n".join(lines)}
    )
    for column in ("text", "caption"):
        splits = load_splits(folder, caption_column="text" if column == "text" else None)
        assert {column} == {"text", "caption"} & {*splits["train"].column_names}
    # One that is not usual is captions if it is asked for.
    renamed = (folder / "metadata.jsonl").read_text().replace('"text"', '"Satz"')
    (folder / "metadata.jsonl").write_text(renamed)
    assert "Satz" in load_splits(folder, caption_column="Satz")["train"].column_names


def test_texts_beside_labels_stay_what_they_are(tmp_path):
    labels = ["owl", "fern"]
    texts = table(
        "image,text,species", [f"{image}.jpg,{'a long text ' + str(image)},{labels[image % 2]}" for image in range(6)]
    )
    found = read_data(write(tmp_path, {**dict.fromkeys(IMAGES), "data.csv": texts}), validation_split=0)
    assert found.splits["train"].column_names == ["image", "text", "label"]
    # Of few words that are repeated, they are the labels.
    words = table("image,text", [f"{image}.jpg,{labels[image % 2]}" for image in range(6)])
    (tmp_path / "data.csv").write_text(words)
    found = read_data(tmp_path, validation_split=0)
    assert names_of(found) == {f"{image}.jpg": labels[image % 2] for image in range(6)}


def test_what_a_model_predicts_is_still_no_data(tmp_path):
    results = table("image,label", [f"{image}.jpg,owl" for image in range(6)])
    write(tmp_path, {**dict.fromkeys(IMAGES), "results.csv": results})
    with pytest.raises(ValueError, match="have no classes"):
        read_data(tmp_path)
