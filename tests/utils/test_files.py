"""Atomic writes reach the disk before they have their final name; paths that lead nowhere are told from ids."""

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from starft_hf.utils.files import (
    check_free,
    check_writable,
    file_in_place_of,
    folder_in_place_of,
    leads_out,
    local_or_hub,
)
from tests.support.disk import recorded


def test_a_file_is_flushed_before_and_its_folder_after_the_rename(tmp_path, monkeypatch):
    calls = recorded(monkeypatch)
    with file_in_place_of(tmp_path / "record.json") as temporary:
        temporary.write_text("{}")
    expected = [("fsync", temporary.name), ("replace", temporary.name, "record.json"), ("fsync", tmp_path.name)]
    assert calls == expected
    assert (tmp_path / "record.json").read_text() == "{}"


def test_temporary_files_of_processes_that_were_killed_long_ago_are_removed(tmp_path):
    for name in (".[record].json.old", ".[record].json.new", ".record.json.old", "[record].json.old"):
        (tmp_path / name).write_text("{")
        if name.endswith("old"):
            os.utime(tmp_path / name, (1e9, 1e9))
    with file_in_place_of(tmp_path / "[record].json"):
        pass
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".[record].json.new", ".record.json.old", "[record].json", "[record].json.old"]


def test_all_of_a_folder_is_flushed_before_and_its_parent_after_the_rename(tmp_path, monkeypatch):
    calls = recorded(monkeypatch)
    with folder_in_place_of(tmp_path / "model") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").write_text("1")
        (temporary / "config").write_text("2")
    assert sorted(calls[:-2]) == sorted(("fsync", name) for name in (temporary.name, "inner", "weights", "config"))
    assert calls[-2:] == [("rename", temporary.name, "model"), ("fsync", tmp_path.name)]


@pytest.fixture(params=[0o022, 0o027, 0o077])
def mode(request):
    """The mode of a new file under some umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="it has no umask")
def test_files_of_safetensors_have_the_mode_of_new_files(tmp_path, mode):
    with file_in_place_of(tmp_path / "head.safetensors") as temporary:
        save_file({"x": torch.zeros(1)}, temporary)
    with folder_in_place_of(tmp_path / "model") as temporary:
        (temporary / "inner").mkdir()
        save_file({"x": torch.zeros(1)}, temporary / "inner" / "model.safetensors")
        (temporary / "run.sh").write_text("")
        (temporary / "run.sh").chmod(0o700)
    files = [tmp_path / "head.safetensors", tmp_path / "model" / "inner" / "model.safetensors"]
    assert [path.stat().st_mode & 0o777 for path in files] == [mode, mode]
    assert (tmp_path / "model" / "run.sh").stat().st_mode & 0o777 == 0o700 | mode


@pytest.mark.parametrize("replacing", [file_in_place_of, folder_in_place_of])
@pytest.mark.parametrize(
    "error", [OSError(errno.EDQUOT, "Disk quota exceeded"), SafetensorError("No space left on device (os error 28)")]
)
def test_a_full_disk_is_named_with_what_did_not_fit(tmp_path, replacing, error):
    said = r"report' could not be written, with .* MiB left .*make room"
    with pytest.raises(OSError, match=said) as found, replacing(tmp_path / "report"):
        raise error
    assert str(error) in str(found.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["./runs", "../runs", "~/nowhere", "/nowhere", "a/b/c", "runs/", "here/rnu", "a\\b", "..\\x", Path("a")]
)
def test_paths_that_lead_nowhere(name, tmp_path, monkeypatch):
    (tmp_path / "here" / "run").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        local_or_hub(name, "model")
    with pytest.raises(FileNotFoundError, match=r"as model\. Did you mean 'here/run'"):
        local_or_hub("here/rnu", "model")


def test_paths_here_and_ids_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "here" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("openai/clip-vit-base-patch16", "gpt2", "here", "here/run", "./here", str(tmp_path / "here")):
        assert local_or_hub(name, "model") == str(Path(name)) or name.startswith("./")
    assert local_or_hub("~/here/run", "model") == str(tmp_path / "here" / "run")
    assert local_or_hub(Path("here"), "model") == "here"
    with pytest.raises(ValueError, match="model is a dict; pass a path, or the id"):
        local_or_hub({}, "model")


def test_a_link_to_nowhere_is_no_place_to_write_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for folder in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(NotADirectoryError, match=r"link' is a link to .*gone', which does not exist"):
            check_writable(folder, "output_dir")
    (tmp_path / "gone").mkdir()
    check_writable(tmp_path / "link" / "run", "output_dir")


def test_places_whose_names_lead_nowhere_are_refused_in_words(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    for name, why in (
        ("one/run", r"one' is a link that leads back to itself"),
        ("new/" + "x" * 256, "the disk has no names of 256 bytes"),
        ("x" * 256 + "/run", "the disk has no names of 256 bytes"),
    ):
        for check in (check_writable, check_free):
            with pytest.raises(NotADirectoryError, match=f"output_dir is .*{why}"):
                check(tmp_path / name, "output_dir")
    with pytest.raises(NotADirectoryError, match=r"output is '.*one/a.csv', and '.*one' is a link"):
        check_writable(tmp_path / "one" / "a.csv", "output", is_file=True)


def test_links_within_a_folder_and_a_snapshot_do_not_lead_out(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for name in ("models--a--b/blobs/x", "secret", "models--a--b/snapshots/1/own"):
        (tmp_path / name).write_text(name)
    for name, target in (("blob", "../../blobs/x"), ("out", "../../../secret"), ("inner", "own")):
        (snapshot / name).symlink_to(target)
    assert {path.name for path in snapshot.iterdir() if leads_out(path)} == {"out"}
