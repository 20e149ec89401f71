"""The families of dual encoders: one row per `config.model_type` says what the package must know about it."""

from dataclasses import dataclass, replace

from torch import Tensor, nn


# How the names of attention projections end in the towers of CLIP, ViT, BERT and DistilBERT.
_CLIP = ("q_proj", "k_proj", "v_proj", "out_proj")
_VIT = ("o_proj",)
_BERT = ("query", "key", "value", r"attention\.output\.dense")
_DISTILBERT = ("q_lin", "k_lin", "v_lin", "out_lin")
# EfficientNet and ConvNeXt have no attention: there, the convolutions that mix channels.
_EFFICIENTNET = ("expand_conv", "project_conv")
_CONVNEXT = ("pwconv1", "pwconv2")
_ALL = _CLIP + _VIT + _BERT + _DISTILBERT + _EFFICIENTNET + _CONVNEXT

# Old configurations of CLIP give the end token this id, whatever the tokenizer's; the tower then pools the highest id.
LEGACY_EOS = 2


@dataclass(frozen=True)
class Family:
    """Where a family of dual encoders keeps its parameters, and what its texts and images must be like.

    Attributes:
        temperature: the parameter that holds the temperature.
        stores_log: whether that parameter is log(1 / temperature); if not, it is the temperature itself.
        logit_bias: the parameter that sigmoid models add to the scaled similarities; None for softmax models.
        fixed_length: whether texts are padded to the length of the text tower, because it sees padding (it takes no
            attention mask and pools the last position), rather than to the longest text of a batch.
        shares_prefixes: whether texts may share the computation of their prefixes (see `prefix_sharing`): the tower is
            causal, takes `position_ids` and a mask per pair of tokens, and pools the first end token.
        checks_end_token: whether the tokenizer must end texts with the token `text_config.eos_token_id`.
        has_legacy_end: whether the tower pools the token with the highest id where that is `LEGACY_EOS`.
        vision_tower, text_tower: the modules that embed images and texts.
        vision_projection, text_projection: the modules that project what the towers return, where there are any.
        any_towers: whether the towers are models of any type, whose pooled embeddings may lack or have another shape.
        lora_targets: patterns for the ends of the names of the modules that the LoRA presets adapt. In a tower without
            any, they adapt its linear layers and the convolutions that mix channels.
    """

    temperature: str = "logit_scale"
    stores_log: bool = True
    logit_bias: str | None = None
    fixed_length: bool = False
    shares_prefixes: bool = False
    checks_end_token: bool = False
    has_legacy_end: bool = False
    vision_tower: str = "vision_model"
    text_tower: str = "text_model"
    vision_projection: str = "visual_projection"
    text_projection: str = "text_projection"
    any_towers: bool = False
    lora_targets: tuple[str, ...] = _CLIP


_SIGLIP = Family(logit_bias="logit_bias", fixed_length=True, text_projection="text_model.head")

FAMILIES = {
    "clip": Family(shares_prefixes=True, checks_end_token=True, has_legacy_end=True),
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "metaclip_2": Family(checks_end_token=True),
    "altclip": Family(lora_targets=_CLIP + _BERT),
    "chinese_clip": Family(lora_targets=_CLIP + _BERT),
    "align": Family("temperature", stores_log=False, lora_targets=_BERT + _EFFICIENTNET),
    "vision-text-dual-encoder": Family(any_towers=True, lora_targets=_ALL),
}

# Other model types: with either temperature, sigmoid if they have a bias, and with the LoRA targets of all families.
_OTHER = Family(logit_bias="logit_bias", any_towers=True, lora_targets=_ALL)
_OTHERS = (_OTHER, replace(_OTHER, temperature="temperature", stores_log=False))

TEMPERATURES = tuple(row.temperature for row in _OTHERS)
# The parameters beside the towers that scale and shift similarities.
LOGIT_PARAMETERS = (*TEMPERATURES, _OTHER.logit_bias)


def family_of(model: nn.Module) -> Family:
    """The row of `model`, by its `config.model_type`; the default for other types depends on their temperature."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    return next((row for row in _OTHERS if isinstance(getattr(model, row.temperature, None), Tensor)), _OTHER)
