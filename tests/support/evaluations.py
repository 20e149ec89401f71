"""A script that evaluates without a trainer: `evaluations.py FILE`, with one process or several."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoProcessor, CLIPModel

from starft_hf import StarFTConfig, StarFTTrainer, compare, evaluate_retrieval, evaluate_zero_shot
from starft_hf.models.heads import head_from_weights
from starft_hf.utils.collectives import rank, world_size
from tests.support.launch import end_quietly
from tests.support.tiny import MANY_NAMES, TINY_CLIP, captioned, make_dataset


# Arguments of `evaluate_zero_shot`, and the number of images: 1 leaves a process without any.
CASES = {
    "groups": ({"group_column": "group", "keep_mistakes": 5, "batch_size": 4}, 23),
    "one image": ({"keep_mistakes": 2}, 1),
    "mapping": ({"class_names": MANY_NAMES[:5], "class_mapping": [[0, 4], [1], [2], [3]]}, 9),
    "head": ({"keep_mistakes": 3}, 13),
}
# The number of images: 1 leaves a process without any.
RETRIEVAL_CASES = {"captions": 23, "one image with captions": 1}


def run(file):
    """Evaluate every case and write what rank 0 gets; every process has to get the same."""
    model = CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float64)
    processor = AutoProcessor.from_pretrained(TINY_CLIP)
    found = {"processes": world_size()}
    for name, (settings, size) in CASES.items():
        if name == "head":
            weights = torch.randn(4, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            settings = {**settings, "head": head_from_weights(weights)}
        result = evaluate_zero_shot(model, processor, make_dataset(size), progress=False, **settings)
        found[name] = result.as_dict()
    for name, size in RETRIEVAL_CASES.items():
        result = evaluate_retrieval(model, processor, captioned(size), progress=False, batch_size=4)
        found[name] = result.as_dict()
    for size in (23, 8, 1):
        found[f"stream of {size}"] = by_a_trainer(model, processor, size)
    found["repaired"] = repaired(model, processor, str(Path(file).parent / f"comparison-{world_size()}"))
    path = Path(file)
    path.with_suffix(f".{rank()}").write_text(json.dumps(found))


def repaired(model, processor, folder):
    """The result of a repair in a comparison, of more rows than a batch has."""
    args = StarFTConfig(folder, use_cpu=True, report_to="none", per_device_eval_batch_size=3, disable_tqdm=True)
    sets = {"repair_dataset": make_dataset(48, seed=5), "processing_class": processor, "alpha": None}
    report = compare(model, args, make_dataset(), make_dataset(23), methods=["zero-shot + last layer"], **sets)
    return report.runs[0].results["eval"].as_dict()


def by_a_trainer(model, processor, size):
    """The result of a trainer for rows that it can only read in order, and how many rows it predicts."""
    args = StarFTConfig("unused", use_cpu=True, report_to="none", per_device_eval_batch_size=3, disable_tqdm=True)
    rows = make_dataset(size).to_iterable_dataset(num_shards=min(size, 2))
    trainer = StarFTTrainer(model, args, None, rows, processing_class=processor)
    trainer.evaluate()
    return trainer.evaluation_results["eval"].as_dict()


if __name__ == "__main__":
    PartialState(cpu=True)
    run(sys.argv[1])
    end_quietly()
