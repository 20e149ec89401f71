"""What several processes exchange in a step, against what they compute: `python -m benchmarks.scaling`.

The exchange is counted from the code's own collectives, the work by torch's FLOP counter on models without memory;
how fast either goes is left to the reader's machines.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel


FOLDER = Path(__file__).parent
RANKS = (8, 64, 512)
ROWS = 128
TOKENS = 16

SHAPES: dict[str, dict[str, Any]] = {
    "ViT-B/16": {"patch": 16, "vision": (768, 12, 12), "text": (512, 12, 8), "width": 512},
    "ViT-L/14": {"patch": 14, "vision": (1024, 24, 16), "text": (768, 12, 12), "width": 768},
}


def _tower(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def work(name: str) -> tuple[float, int]:
    """Floating-point operations of one process's step with a full cache, and the model's parameters."""
    shape = SHAPES[name]
    text = _tower(*shape["text"]) | {"eos_token_id": 49407}
    vision = _tower(*shape["vision"]) | {"patch_size": shape["patch"]}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape["width"])
    with torch.device("meta"):
        model = CLIPModel(config)
        pixels = torch.empty(ROWS, 3, 224, 224)
        # Captions and spurious captions, before they share what they begin with.
        tokens = torch.zeros(2 * ROWS, TOKENS, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        outputs = model(pixel_values=pixels, input_ids=tokens)
        (outputs.image_embeds.sum() + outputs.text_embeds.sum()).backward()
    return float(counter.get_total_flops()), sum(parameter.numel() for parameter in model.parameters())


def gathered_bytes(width: int, ranks: int) -> int:
    """Bytes a process receives for the columns of a step, in float32.

    Images, captions and spurious captions forward and their gradients backward; the reference's spurious captions,
    labels and validity forward only.
    """
    per_row = 2 * 3 * width * 4 + width * 4 + 8 + 1
    return (ranks - 1) * ROWS * per_row


def measured_step() -> tuple[int, float]:
    """Images and median seconds of the step of ViT-B/16 with 1,000 classes that results.json has."""
    steps = json.loads((FOLDER / "results.json").read_text())["steps"]
    name = next(name for name in steps if name.startswith("ViT-B/16, 1,000, "))
    return int(name.rpartition(" ")[2]), statistics.median(steps[name]["full"])


def as_markdown() -> str:
    """The estimate."""
    lines = [
        "# Scaling, estimated",
        "",
        f"By `python -m benchmarks.scaling`. {ROWS} images a process, captions of {TOKENS} tokens, full cache,",
        "float32 on the wire. Nothing here was run on more than 3 processes; the operations are counted, not timed.",
        "",
        "Beside the gradients, which DDP averages whatever the loss (2 x parameters x 4 bytes with a ring, for any",
        "number of processes), StarFT exchanges columns: every process receives the others' embeddings and sends back",
        "gradients of them.",
        "",
        "| Model | Processes | Batch | Operations a process | of which logits | Columns received | "
        "of the gradients' bytes | bytes per million operations |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, shape in SHAPES.items():
        flops, parameters = work(name)
        for ranks in RANKS:
            columns = gathered_bytes(shape["width"], ranks)
            logits = 3 * 2 * 3 * ROWS * ranks * ROWS * shape["width"]
            total = flops + logits
            cells = [
                name,
                str(ranks),
                f"{ranks * ROWS:,}",
                f"{total / 1e12:.1f} T",
                f"{logits / total:.1%}",
                f"{columns / 2**20:,.0f} MiB",
                f"{columns / (2 * parameters * 4):.1%}",
                f"{1e6 * columns / total:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    images, seconds = measured_step()
    lines += [
        "",
        f"For comparison, measured with one process: a step of {images} images of ViT-B/16 takes {seconds:.1f} s on",
        "the machine of [RESULTS.md](RESULTS.md).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = as_markdown()
    (FOLDER / "SCALING.md").write_text(text)
    print(text)
