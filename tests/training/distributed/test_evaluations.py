"""K processes that share out an evaluation set all get what one does."""

import json

import pytest

from tests.support import evaluations
from tests.support.launch import torchrun


def assert_same(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-12) if isinstance(expected, float) else expected)


@pytest.mark.slow
def test_every_process_gets_the_result_of_the_whole_set(tmp_path):
    done = torchrun(2, evaluations.__file__, tmp_path / "two.json")
    assert done.returncode == 0, done.stderr[-6000:]
    evaluations.run(tmp_path / "one.json")
    expected = json.loads((tmp_path / "one.0").read_text()) | {"processes": 2}
    for rank in range(2):
        assert_same(json.loads((tmp_path / f"two.{rank}").read_text()), expected)
    assert len(expected["groups"]["mistakes"]) == 5
    assert sum(expected["repaired"]["group_sizes"].values()) == 23
