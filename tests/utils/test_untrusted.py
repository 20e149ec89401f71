"""What is wrong with a file from elsewhere is a ValueError that says so, whatever it is."""

import pytest

from starft_hf.utils.untrusted import read_json, read_json_object, read_yaml


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{former}'] * 9)}]\n" for former, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("read", "content", "match"),
    [
        (read_json, "[" * 100_000, "nested too deeply"),
        (read_json, "{", "Expecting"),
        (read_json, "1" * 5_000, "limit"),
        (read_json, "\xff", "utf-8"),
        (read_yaml, "[" * 100_000, "too deep"),
        (read_yaml, "a: [", "expected"),
        (read_yaml, BOMB, r"refers to parts of itself \(\*name\)"),
        (read_yaml, "!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, read, content, match):
    (tmp_path / "file").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=match):
        read(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[]", "a list, not an object"),
        ("{}", "lacks 'step'"),
        ('{"step": "3"}', "a str"),
        ('{"step": true}', "a bool"),
    ],
)
def test_objects_have_entries_of_their_kinds(tmp_path, content, match):
    (tmp_path / "file").write_text(content)
    with pytest.raises(ValueError, match=match):
        read_json_object(tmp_path / "file", {"step": int})


def test_what_is_right_is_read(tmp_path):
    (tmp_path / "file").write_text('{"step": 3}')
    assert read_json_object(tmp_path / "file", {"step": int}) == read_yaml(tmp_path / "file") == {"step": 3}
