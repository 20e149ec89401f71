"""Pre-trains the tiny CLIP that the demo fine-tunes.

    python -m starft_hf.demo.pretrain --output DIR

rebuilds the weights in the package, of the model and tokenizer configured there. Images and captions are drawn as
needed; no dataset is downloaded.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from tqdm.auto import tqdm
from transformers import AutoProcessor, CLIPConfig, CLIPModel, CLIPProcessor

from starft_hf.demo import world
from starft_hf.models.encoder import DualEncoder
from starft_hf.objectives.losses import contrastive_loss
from starft_hf.utils.files import expanded, folder_in_place_of, is_free


MODEL_FOLDER = Path(__file__).parent / "model"
LEARNING_RATE = 1.5e-3


def pretrain(
    seed: int = 0,
    steps: int = 600,
    batch_size: int = 128,
    progress: bool = True,
    logit_scale: float | None = None,
    draw_captioned: Callable[[np.random.Generator], tuple[Image, str]] = world.draw_captioned,
    processor: CLIPProcessor | None = None,
) -> tuple[CLIPModel, CLIPProcessor]:
    """Pre-train the shipped model anew, on clean images of every shape on every background, equally often.

    Args:
        seed: seed of weights and images.
        steps: of the optimizer.
        batch_size: images per step.
        progress: whether to show a progress bar.
        logit_scale: a fixed inverse temperature; None trains it, as CLIP does, to about 15 here.
        draw_captioned: draws an image and its caption; by default those of the demo's world.
        processor: whose tokenizer knows the words of the captions; None is the shipped one.
    """
    processor = AutoProcessor.from_pretrained(MODEL_FOLDER) if processor is None else processor
    config = CLIPConfig.from_pretrained(MODEL_FOLDER)
    config.text_config.vocab_size = len(processor.tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    if logit_scale is not None:
        model.logit_scale.requires_grad_(False).fill_(math.log(logit_scale))
    encoder = DualEncoder.of(model, processor)
    rng = np.random.default_rng((7, seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    with tqdm(total=steps, desc="Pre-training", unit=" steps", disable=not progress) as bar:
        for _ in range(steps):
            images, captions = zip(*(draw_captioned(rng) for _ in range(batch_size)), strict=True)
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
    pairs = itertools.product(world.BACKGROUNDS, range(len(world.CLASS_NAMES)))
    rows = list(itertools.islice(itertools.cycle(pairs), size))
    images = [world.draw_image(rng, world.CLASS_NAMES[label], place) for place, label in rows]
    pixels = processor.image_processor(images=images, return_tensors="pt")
    texts = [world.CAPTION_TEMPLATE.format(name) for name in world.CLASS_NAMES]
    logits = encoder.encode(model, images=pixels) @ encoder.encode(model, texts=texts).T
    return (logits.argmax(-1) == torch.tensor([label for _, label in rows])).double().mean().item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Rebuild the weights from a command line."""
    parser = argparse.ArgumentParser("python -m starft_hf.demo.pretrain", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=expanded, required=True, help="folder for the model and its processor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--logit-scale", type=float, help="fixed inverse temperature (default: trained)")
    options = parser.parse_args(arguments)
    if not is_free(options.output):
        parser.error(f"{options.output} is not an empty folder; choose another")
    model, processor = pretrain(options.seed, options.steps, logit_scale=options.logit_scale)
    with folder_in_place_of(options.output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f"zero-shot accuracy {zero_shot_accuracy(model, processor):.1%}, written to {options.output}")


if __name__ == "__main__":
    main()
