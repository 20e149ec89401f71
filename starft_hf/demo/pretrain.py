"""Pre-trains the tiny CLIP that the demo fine-tunes.

    python -m starft_hf.demo.pretrain --output DIR

rebuilds the weights in the package. Images and captions are drawn as needed; no dataset is downloaded.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from starft_hf.demo import world
from starft_hf.models.encoder import DualEncoder
from starft_hf.objectives.losses import contrastive_loss


MODEL_FOLDER = Path(__file__).parent / "model"

MAX_TEXT_LENGTH = 32
LEARNING_RATE = 1.5e-3


def make_processor() -> CLIPProcessor:
    """A CLIPProcessor with one token per word of the demo's world."""
    words = ["<pad>", "<unk>", *world.vocabulary(), "<s>", "</s>"]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=MAX_TEXT_LENGTH,
    )
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": world.IMAGE_SIZE},
        crop_size={"height": world.IMAGE_SIZE, "width": world.IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return CLIPProcessor(image_processor=image_processor, tokenizer=fast)


def make_model(processor: CLIPProcessor) -> CLIPModel:
    """An untrained CLIPModel of about 600,000 parameters."""
    tokenizer = processor.tokenizer
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": MAX_TEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "image_size": world.IMAGE_SIZE,
            "patch_size": 8,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        },
        projection_dim=64,
    )
    return CLIPModel(config)


def pretrain(
    seed: int = 0,
    steps: int = 600,
    batch_size: int = 128,
    progress: bool = True,
    logit_scale: float | None = None,
) -> tuple[CLIPModel, CLIPProcessor]:
    """Pre-train on newly drawn clean images of every shape on every background, all with the same frequency.

    Args:
        seed: of the weights and of the images.
        steps: optimizer steps; AdamW with a one-cycle schedule.
        batch_size: images per step.
        progress: whether to show a progress bar.
        logit_scale: fixed inverse temperature; None trains it, as CLIP does, to about 15 here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        processor = make_processor()
        model = make_model(processor)
    if logit_scale is not None:
        model.logit_scale.requires_grad_(False).fill_(math.log(logit_scale))
    encoder = DualEncoder.of(model, processor)
    rng = np.random.default_rng((7, seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    with tqdm(total=steps, desc="Pre-training", unit="step", disable=not progress) as bar:
        for _ in range(steps):
            images, captions, _ = zip(*(world.draw_captioned(rng) for _ in range(batch_size)), strict=True)
            pixels = processor.image_processor(images=list(images), return_tensors="pt")
            outputs = encoder.forward(model, {**pixels, **encoder.encode_texts(captions)})
            loss = contrastive_loss(outputs.image_embeds, outputs.text_embeds, outputs.logit_scale)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
            bar.update()
    model.logit_scale.requires_grad_(True)
    return model.eval(), processor


@torch.no_grad()
def zero_shot_accuracy(model: CLIPModel, processor: CLIPProcessor, seed: int = 1, size: int = 960) -> float:
    """Accuracy over all eight shapes on clean images of every background, drawn with `seed`."""
    encoder = DualEncoder.of(model, processor)
    rng = np.random.default_rng((11, seed))
    labels = [row % len(world.CLASS_NAMES) for row in range(size)]
    places = [world.BACKGROUNDS[row // len(world.CLASS_NAMES) % len(world.BACKGROUNDS)] for row in range(size)]
    images = [
        world.draw_image(rng, world.CLASS_NAMES[label], place) for label, place in zip(labels, places, strict=True)
    ]
    pixels = processor.image_processor(images=images, return_tensors="pt")
    texts = [world.CAPTION_TEMPLATE.format(name) for name in world.CLASS_NAMES]
    rows, columns = encoder.encode(model, images=pixels), encoder.encode(model, texts=texts)
    return ((rows @ columns.T).argmax(-1) == torch.tensor(labels)).double().mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Rebuild the weights from a command line."""
    parser = argparse.ArgumentParser(
        prog="python -m starft_hf.demo.pretrain", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the model and its processor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--logit-scale", type=float, help="fixed inverse temperature (default: trained)")
    options = parser.parse_args(arguments)
    if options.output.exists() and any(options.output.iterdir()):
        parser.error(f"{options.output} exists and is not empty; choose another folder")
    model, processor = pretrain(options.seed, options.steps, logit_scale=options.logit_scale)
    model.save_pretrained(options.output)
    processor.save_pretrained(options.output)
    print(f"zero-shot accuracy {zero_shot_accuracy(model, processor):.1%}, written to {options.output}")


if __name__ == "__main__":
    main()
