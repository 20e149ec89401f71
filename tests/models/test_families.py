"""What the table says of every family is true of its models."""

import re

import pytest
import torch

from starft_hf.models.encoder import DualEncoder, logit_bias_of, logit_scale_of
from starft_hf.models.families import FAMILIES, LOGIT_PARAMETERS, Family, family_of
from starft_hf.models.parts import parts_of
from tests.support.families import FAMILIES as NAMES
from tests.support.families import TEXT_TOWERS, VISION_TOWERS, towers
from tests.support.families import family as make


def test_every_row_is_tested():
    assert list(FAMILIES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_row_names_what_its_models_have(name):
    model, _ = make(name)
    row = family_of(model)
    assert row is FAMILIES[name]
    scalars = {key for key, value in model.named_parameters() if value.numel() == 1}
    assert scalars == {row.temperature, row.logit_bias} - {None}
    assert scalars <= set(LOGIT_PARAMETERS)
    modules = dict(model.named_modules())
    assert {row.vision_tower, row.text_tower} <= modules.keys()
    kinds = {(part.tower, part.kind) for part in parts_of(model).values()}
    assert {(tower, kind) for tower in ("vision", "text") for kind in ("embeddings", "layers")} <= kinds
    assert ("text", "projections") in kinds
    assert (None, "other") not in kinds
    if row.any_towers:
        pairs = [*((vision, "bert") for vision in VISION_TOWERS), *(("vit", text) for text in TEXT_TOWERS)]
        modules = {key: part for pair in pairs for key, part in towers(*pair)[0].named_modules()}
    for target in row.lora_targets:
        assert any(re.fullmatch(rf".*\.{target}", key) for key in modules), target


@pytest.mark.parametrize("name", ["clip", "siglip", "align"])
def test_another_model_type_is_read_by_the_parameters_it_has(name):
    model, processor = make(name)
    before = logit_scale_of(model), logit_bias_of(model)
    model.config.model_type = "another"
    row = family_of(model)
    assert isinstance(row, Family)
    assert row not in FAMILIES.values()
    torch.testing.assert_close((logit_scale_of(model), logit_bias_of(model)), before, rtol=0, atol=0)
    assert "text_rows" not in DualEncoder.of(model, processor).encode_texts(["a photo of an owl."])
