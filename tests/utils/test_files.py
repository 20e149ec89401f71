"""Atomic writes reach the disk before they have their final name."""

from starft_hf.utils.files import file_in_place_of, folder_in_place_of
from tests.support.disk import recorded


def test_a_file_is_flushed_before_and_its_folder_after_the_rename(tmp_path, monkeypatch):
    calls = recorded(monkeypatch)
    with file_in_place_of(tmp_path / "record.json") as temporary:
        temporary.write_text("{}")
    expected = [("fsync", temporary.name), ("replace", temporary.name, "record.json"), ("fsync", tmp_path.name)]
    assert calls == expected
    assert (tmp_path / "record.json").read_text() == "{}"


def test_all_of_a_folder_is_flushed_before_and_its_parent_after_the_rename(tmp_path, monkeypatch):
    calls = recorded(monkeypatch)
    with folder_in_place_of(tmp_path / "model") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "weights").write_text("1")
        (temporary / "config").write_text("2")
    assert sorted(calls[:-2]) == sorted(("fsync", name) for name in (temporary.name, "inner", "weights", "config"))
    assert calls[-2:] == [("rename", temporary.name, "model"), ("fsync", tmp_path.name)]
