"""Folders of images as img2dataset writes them."""

import json

from starft_hf.data.layouts import FileTree, img2dataset
from tests.support.tiny import make_dataset


def write(folder, number, status="success", caption="json", text=True):
    key = folder / f"{number:09}"
    if status == "success":
        make_dataset(1)[0]["image"].save(key.with_suffix(".jpg"))
        if text:
            key.with_suffix(".txt").write_text(f"text {number}\n")
    key.with_suffix(".json").write_text(
        json.dumps({"caption": caption, "status": status, "label": "owl", "n": number})
    )


def test_images_captions_and_failures(tmp_path):
    assert img2dataset.read(FileTree(tmp_path)) is None
    for folder in ("00000", "test/00001"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / f"{folder}_stats.json").write_text("{}")
        (tmp_path / f"{folder}.parquet").write_bytes(b"")
    write(tmp_path / "00000", 0)
    write(tmp_path / "00000", 1, text=False)
    write(tmp_path / "00000", 2, status="failed_to_download")
    write(tmp_path / "test/00001", 3)
    layout = img2dataset.read(FileTree(tmp_path))
    assert layout.sources == {"train": ("00000",), "test": ("test/00001",)}
    train = layout.splits["train"]
    assert train["caption"].tolist() == ["text 0", "json"]
    assert train["label"].tolist() == ["owl", "owl"]
    assert train["n"].tolist() == [0, 1]
    assert train["image"].tolist() == [str(tmp_path / "00000" / f"{number:09}.jpg") for number in range(2)]
    assert len(layout.splits["test"]) == 1
    assert layout.left_out == {
        "00000/000000002.json": "its status is 'failed_to_download'",
        "00000.parquet": "metadata of 00000/",
        "00000_stats.json": "metadata of 00000/",
        "test/00001.parquet": "metadata of 00001/",
        "test/00001_stats.json": "metadata of 00001/",
    }
    assert layout.notes == ("1 samples are skipped: its status is 'failed_to_download'.",)
