"""Model A: a CLIP of 0.65 million parameters for 48 pixels, pre-trained in four minutes on one core."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from tqdm import trange
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from benchmarks.photographs.assets import Assets
from benchmarks.photographs.pretraining import alignment_of, all_captions, draw_captioned


PIXELS, PATCH = 48, 12
STEPS, BATCH, LEARNING_RATE = 1500, 96, 1.5e-3
MEAN, DEVIATION = 0.5, 0.25
LONGEST = 32


def make_processor(captions: Iterable[str]) -> CLIPProcessor:
    """A processor whose tokens are the words of some captions."""
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    words = sorted({word for caption in captions for word, _ in split.pre_tokenize_str(caption.lower())})
    ids = {word: index for index, word in enumerate(["<pad>", "<unk>", *words, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    # CLIP pools at the token with the highest id.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return CLIPProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": PIXELS},
            crop_size={"height": PIXELS, "width": PIXELS},
            image_mean=[MEAN] * 3,
            image_std=[DEVIATION] * 3,
        ),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LONGEST, **special),
    )


def make_model(processor: CLIPProcessor, seed: int) -> CLIPModel:
    """The model before pre-training."""
    tokenizer = processor.tokenizer
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LONGEST,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "image_size": PIXELS,
        "patch_size": PATCH,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def pretrain(seed: int, assets: Assets, steps: int = STEPS, progress: bool = True) -> tuple[CLIPModel, CLIPProcessor]:
    """Model A, pre-trained; `seed` is that of the weights and the compositions."""
    processor = make_processor(all_captions(assets))
    model = make_model(processor, seed).train()
    rng = np.random.default_rng((7, seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)

    def embed(captions: list[str]) -> Tensor:
        tokens = processor.tokenizer(captions, return_tensors="pt", padding=True)
        return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)

    for _ in trange(steps, desc=f"model A, seed {seed}", disable=not progress):
        batch = draw_captioned(rng, assets, BATCH, PIXELS)
        pixels = (batch.images.float() / 255 - MEAN) / DEVIATION
        image_embeds = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        loss = alignment_of(image_embeds, embed, model.logit_scale.exp(), batch, rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval(), processor
