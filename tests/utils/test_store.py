import logging
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from starft_hf.utils import store as store_module
from starft_hf.utils.store import FeatureStore


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "features")


def raising(error):
    """A function that raises, whatever it is called with."""

    def function(*args, **kwargs):
        raise error

    return function


EMBEDS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_what_is_saved_is_loaded(store, caplog):
    assert store.load("texts", "k", 6) is None
    assert store.save("texts", "k", EMBEDS)
    assert torch.equal(store.load("texts", "k", 6), EMBEDS)
    assert [path.name for path in store.folder.iterdir()] == ["texts-k.safetensors"]
    assert not messages(caplog)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "a byte is flipped": flip_a_byte,
    "empty": lambda path: path.write_bytes(b""),
    "another format": lambda path: path.write_text("something else"),
    "a header that claims too much": lambda path: path.write_bytes(b"\xff" * 16 + path.read_bytes()),
    "no header": lambda path: save_file(load_file(path), path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_ignored_with_one_warning_and_replaced(store, caplog, damage):
    store.save("texts", "k", EMBEDS)
    DAMAGES[damage](store.path("texts", "k"))
    assert store.load("texts", "k", 6) is None
    assert len(messages(caplog)) == 1
    assert "rebuilt" in messages(caplog)[0]
    store.save("texts", "k", EMBEDS)
    assert torch.equal(store.load("texts", "k", 6), EMBEDS)


def test_a_file_of_something_else_under_the_right_name_is_not_used(store, caplog):
    store.save("texts", "other", EMBEDS)
    shutil.copy(store.path("texts", "other"), store.path("texts", "k"))
    assert store.load("texts", "k", 6) is None
    shutil.copy(store.path("texts", "other"), store.path("images", "other"))
    assert store.load("images", "other", 6) is None
    assert store.load("texts", "other", 7) is None
    assert [("another key" in m, "another kind" in m, "another rows" in m) for m in messages(caplog)] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


@pytest.mark.parametrize("is_built", [True, False])
def test_what_a_killed_process_has_left_is_removed(store, is_built):
    """Its pieces, whatever the number of its processes, and old temporary files; others' are left."""
    if is_built:
        store.save("texts", "k", EMBEDS)
    pieces = [f"texts-piece-k-{part}.safetensors" for part in ("0of1-0", "0of1-1", "1of2-0")]
    temporary = [".texts-k.safetensors.abc", ".texts-piece-k-0of1-2.safetensors.abc"]
    others = ["texts-piece-k2-0of1-0.safetensors", ".texts-k2.safetensors.abc", ".texts-k.safetensors.new"]
    store.folder.mkdir(exist_ok=True)
    for name in (*pieces, *temporary, *others):
        (store.folder / name).write_bytes(b"")
        if not name.endswith(".new"):
            os.utime(store.folder / name, (1e9, 1e9))
    store.load_or_build("texts", "k", 6, torch.device("cpu"), lambda _: EMBEDS)
    assert sorted(path.name for path in store.folder.iterdir()) == sorted(["texts-k.safetensors", *others])


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"reference_cache_dir is .*file', which is a file"):
        FeatureStore(tmp_path / "file")


def test_a_folder_that_may_not_be_looked_into_warns(tmp_path, caplog, monkeypatch):
    """As under another user's home; root may look everywhere, so that the answer is given here."""
    refused = PermissionError(13, "Permission denied")
    stat = os.stat

    def refusing(path, *args, **kwargs):
        if "private" in str(path):
            raise refused
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refusing)
    monkeypatch.setattr(store_module, "file_in_place_of", raising(refused))
    store = FeatureStore(tmp_path / "private" / "features")
    embeds, file = store.load_or_build("texts", "k", 6, torch.device("cpu"), lambda pieces: EMBEDS)
    assert torch.equal(embeds, EMBEDS)
    assert file is None
    assert len(messages(caplog)) == 1
    assert "Permission denied" in messages(caplog)[0]


def test_a_damaged_file_in_a_folder_without_room_is_warned_of_once(store, caplog, monkeypatch):
    assert store.save("texts", "k", EMBEDS)
    flip_a_byte(store.path("texts", "k"))
    monkeypatch.setattr(store_module, "save_file", raising(OSError(28, "No space")))
    embeds, file = store.load_or_build("texts", "k", 6, torch.device("cpu"), lambda pieces: EMBEDS)
    assert torch.equal(embeds, EMBEDS)
    assert file is None
    assert [("rebuilt" in text, "No space" in text) for text in messages(caplog)] == [(True, False), (False, True)]


def test_a_full_disk_warns_and_leaves_nothing_behind(store, caplog, monkeypatch):
    def no_room(tensors, path, metadata):
        with open(path, "wb") as file:
            file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "save_file", no_room)
    assert not store.save("texts", "k", EMBEDS)
    assert "No space left on device" in messages(caplog)[0]
    assert list(store.folder.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_folder_that_cannot_be_made_warns(caplog):
    store = FeatureStore("/dev/full/features")
    assert not store.save("texts", "k", EMBEDS)
    assert "could not be written" in messages(caplog)[0]


WRITER = """
import sys, torch
from starft_hf.utils.store import FeatureStore
store = FeatureStore(sys.argv[1])
embeds = torch.full((2000, 256), float(sys.argv[2]))
print("ready", flush=True)
while True:
    store.save("texts", "k", embeds)
"""


@pytest.fixture
def writers(tmp_path):
    """Two processes that publish different features under one key, over and over, until they are killed."""
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), value], stdout=subprocess.PIPE, text=True)
        for value in ("1", "2")
    ]
    for process in processes:
        process.stdout.readline()
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_writers_that_race_and_are_killed_leave_a_whole_file(tmp_path, writers, caplog):
    store, seen = FeatureStore(tmp_path), set()
    deadline = time.monotonic() + 30
    while len(seen) < 2 and time.monotonic() < deadline:
        embeds = store.load("texts", "k", 2000)
        if embeds is not None:
            seen.add(embeds[0, 0].item())
            assert (embeds == embeds[0, 0]).all()
    assert seen == {1.0, 2.0}
    for process in writers:
        process.kill()
        process.wait()
    assert store.load("texts", "k", 2000) is not None
    assert not messages(caplog)
