"""Records of runs that cannot be read, and which names are ids of the Hub."""

import pytest

from starft_hf import StarFTConfig
from starft_hf.hub.record import RunRecord, public_id
from tests.support.tiny import TINY_CLIP


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 99, "class_names": null}'])
def test_records_that_cannot_be_read(content, tmp_path):
    (tmp_path / "starft.json").write_text(content)
    with pytest.raises(ValueError, match=r"starft\.json"):
        RunRecord.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no starft\.json"):
        StarFTConfig.from_pretrained(TINY_CLIP)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("openai/clip-vit-base-patch16", True),
        ("gpt2", True),
        ("/data/clip", False),
        ("../clip", False),
        ("~/clip", False),
        ("C:\\models\\clip", False),
        ("a/b/c", False),
        (None, False),
    ],
)
def test_ids_of_the_hub_and_paths(name, known):
    assert (public_id(name) is not None) == known
