"""Models of real shapes with random weights, and data that goes with them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from starft_hf import SpuriosityPool


# Shapes with their patches in pixels; the toy is for tests of the benchmarks.
TOY = "toy"
PATCH_SIZES = {"ViT-B/32": 32, "ViT-B/16": 16, TOY: 112}
MAX_LENGTH = 77
MOST_CLASSES = 20_000
CAPTION_TEMPLATE = "a photo of a {}."

# With many classes, hardly two captions of a batch are the same whatever the templates: a single one keeps the time
# that fills the cache short.
MANY_CLASSES = 50
POOL = ["{} in the snow."]

_SYLLABLES = ("ba", "ko", "lu", "mi", "ra", "ste", "tor", "vin", "wel", "zan")


@dataclass(frozen=True)
class Scene:
    """A model, its optimiser, its processor and a labelled data set.

    Every step of a comparison trains this one model, so that memory holds its weights once. What they are does not
    matter for what a step costs.
    """

    model: CLIPModel
    optimizer: torch.optim.Optimizer
    processor: CLIPProcessor
    dataset: Dataset


def make_scene(shape: str, num_classes: int, num_images: int, image_size: int = 224) -> Scene:
    """CLIP of a real shape (a key of `PATCH_SIZES`) with random weights, and noisy pictures of made-up classes."""
    torch.manual_seed(0)
    processor = _make_processor()
    layers, width = (1, 8) if shape == TOY else (12, 1)
    config = CLIPConfig(
        text_config={
            "vocab_size": 49408,
            "hidden_size": 512 // width,
            "intermediate_size": 2048 // width,
            "num_hidden_layers": layers,
            "num_attention_heads": 8,
            "max_position_embeddings": MAX_LENGTH,
            "eos_token_id": processor.tokenizer.eos_token_id,
            "bos_token_id": processor.tokenizer.bos_token_id,
            "pad_token_id": processor.tokenizer.pad_token_id,
        },
        vision_config={
            "image_size": 224,
            "patch_size": PATCH_SIZES[shape],
            "hidden_size": 768 // width,
            "intermediate_size": 3072 // width,
            "num_hidden_layers": layers,
            "num_attention_heads": 12,
        },
        projection_dim=512 // width,
    )
    model = CLIPModel(config).to("cuda" if torch.cuda.is_available() else "cpu").train()
    return Scene(
        model, make_optimizer(model.parameters()), processor, make_images(num_classes, num_images, image_size)
    )


def make_optimizer(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """What `Trainer` takes by default: AdamW as one kernel."""
    return torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1, fused=True)


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser have its state, as it has from the second step on."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def class_names(num_classes: int) -> list[str]:
    """Made-up names of two words, two tokens each, as class names have on average."""
    words = [first + second for first in _SYLLABLES for second in _SYLLABLES]
    return [
        f"{words[index % 100]} {words[(index // 100 * 7 + index) % 100]}{index // 100}" for index in range(num_classes)
    ]


def make_images(num_classes: int, num_images: int, image_size: int) -> Dataset:
    """Noise with labels drawn uniformly."""
    rng = np.random.default_rng(0)
    features = Features(image=Image(), label=ClassLabel(names=class_names(num_classes)))
    pixels = rng.integers(0, 256, (num_images, image_size, image_size, 3), dtype=np.uint8)
    labels = rng.integers(num_classes, size=num_images).tolist()
    return Dataset.from_dict({"image": list(pixels), "label": labels}, features=features)


def _make_processor() -> CLIPProcessor:
    # One token per word: about as many as CLIP's byte pairs give for English. Words that differ must differ as tokens,
    # because texts that begin alike share what they begin with.
    texts = [CAPTION_TEMPLATE, *POOL, *SpuriosityPool.load("all"), *class_names(MOST_CLASSES)]
    words = dict.fromkeys(re.findall(r"\w+|[^\w\s]+", " ".join(texts)))
    vocabulary = {"<pad>": 0, "<unk>": 1, "<s>": 49406, "</s>": 49407}
    vocabulary |= {word: index for index, word in enumerate(words, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 49406), ("</s>", 49407)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
    )
    return CLIPProcessor(CLIPImageProcessorPil(), fast)
