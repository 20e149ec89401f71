"""Names of files that UTF-8 cannot hold, which tables of images cannot hold either."""

import json
import os
import shutil
import sys
import tarfile

import pytest

from starft_hf.data.all_images import read_all_images
from starft_hf.data.loading import read_data
from tests.support.layouts import write_images, write_table
from tests.support.tiny import write_shards


pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")

BAD = os.fsdecode(b"bad\xff")
FILES = [
    f"{split}/{name}/{number}.png" for split in ("train", "test") for name in ("owl", "fern") for number in range(3)
]
SHOWN = r"bad\udcff"


@pytest.fixture
def photos(tmp_path):
    write_images(tmp_path / "photos", *FILES)
    return tmp_path / "photos"


def copy_of_one(photos, name):
    target = photos / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(photos / FILES[0], target)
    return target


def test_such_files_are_skipped_and_named(photos):
    copy_of_one(photos, f"train/owl/{BAD}.png")
    copy_of_one(photos, f"{BAD}.csv")
    (photos / f"notes{BAD}").mkdir()
    (photos / "test" / f"{BAD}.png").symlink_to("nowhere")
    found = read_data(photos)
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 6, "test": 6}
    names = [f"{SHOWN}.csv", f"notes{SHOWN}", f"test/{SHOWN}.png", f"train/owl/{SHOWN}.png"]
    assert found.left_out == dict.fromkeys(names, "its name is not in UTF-8")
    images = read_all_images(photos)
    assert sum(map(len, images.splits.values())) == len(FILES)
    assert set(images.left_out) == {file for file in names if file.endswith(".png")}


@pytest.mark.parametrize("read", [read_data, read_all_images])
def test_folders_with_images_of_such_names_are_refused(read, photos):
    copy_of_one(photos, f"train/{BAD}/1.png")
    with pytest.raises(ValueError, match=r"photos/train/bad\\udcff' is not in UTF-8: rename what has a backslash"):
        read(photos)
    with pytest.raises(ValueError, match=r"bad\\udcff' is not in UTF-8"):
        read(photos / "train" / BAD)


def test_a_single_file_of_such_a_name_is_refused(photos):
    with pytest.raises(ValueError, match=r"owl/bad\\udcff.png' is not in UTF-8"):
        read_all_images(copy_of_one(photos, f"train/owl/{BAD}.png"))
    table = photos / f"{BAD}.csv"
    write_table(table, ("file_name", "label"), *((file, "owl") for file in FILES))
    for read in (read_data, read_all_images):
        with pytest.raises(ValueError, match=r"bad\\udcff.csv' is not in UTF-8"):
            read(table)


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_tables_with_such_values_are_named(ending, photos):
    rows = [{"file_name": file, "label": f"owl{BAD}"} for file in FILES]
    text = json.dumps(rows) if ending == "json" else "".join(f"{json.dumps(row)}\n" for row in rows)
    (photos / f"table.{ending}").write_text(text)
    with pytest.raises(ValueError, match=rf"table\.{ending}"):
        read_data(photos / f"table.{ending}")


def test_samples_of_shards_of_such_names_are_skipped(tmp_path, photos):
    write_shards(tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "train-0000.tar", "a") as shard:
        shard.add(photos / FILES[0], f"{BAD}.png")
    found = read_data(tmp_path / "shards")
    assert len(found.splits["train"]) == 16
    assert found.left_out == {f"train-0000.tar/{SHOWN}": "its name is not in UTF-8"}
