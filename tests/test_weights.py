import copy

import pytest
import torch
from transformers import CLIPModel

from starft_hf import interpolate
from starft_hf.heads import head_from_weights, load_head, save_head
from tests.families import family


def test_interpolation_is_linear_and_leaves_both_models_alone(clip):
    other = CLIPModel(clip.config)
    before = copy.deepcopy(clip.state_dict()), copy.deepcopy(other.state_dict())
    merged = interpolate(clip, other, 0.25)
    for name, value in merged.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * before[0][name] + 0.25 * before[1][name])
    for model, state in zip((clip, other), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_the_models_themselves(clip, alpha):
    other = CLIPModel(clip.config)
    expected = (other if alpha else clip).state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in interpolate(clip, other, alpha).state_dict().items()
    )


def test_other_architectures_and_shares_are_refused(clip):
    with pytest.raises(ValueError, match="the models differ: '"):
        interpolate(clip, family("clip")[0], 0.5)
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        interpolate(clip, clip, 1.5)


def test_a_head_is_loaded_as_it_was_saved(tmp_path):
    head = head_from_weights(torch.randn(3, 5))
    save_head(head.state_dict(), ["a", "b", "ç"], tmp_path)
    loaded, names = load_head(tmp_path)
    assert names == ["a", "b", "ç"]
    assert torch.equal(loaded.weight, head.weight)
    assert torch.equal(loaded.bias, torch.zeros(3))
    with pytest.raises(FileNotFoundError, match="cross_entropy"):
        load_head(tmp_path / "elsewhere")
