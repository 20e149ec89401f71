"""A run on one GPU in a process of its own: `python -m tests.support.gpu_run plain|nccl|fsdp OUTPUT`."""

import json
import sys

import torch
from transformers import AutoProcessor, CLIPModel

from starft_hf import StarFTConfig, StarFTTrainer
from tests.support.launch import end_quietly
from tests.support.tiny import TINY_CLIP, make_dataset


FSDP = {
    "version": 2,
    "transformer_layer_cls_to_wrap": ["CLIPEncoderLayer"],
    "state_dict_type": "FULL_STATE_DICT",
    "cpu_ram_efficient_loading": False,
}


def main(kind, output):
    settings = {"fsdp": "full_shard auto_wrap", "fsdp_config": FSDP} if kind == "fsdp" else {}
    args = StarFTConfig(
        output,
        max_steps=4,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    model = CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(TINY_CLIP)
    trainer = StarFTTrainer(model, args, make_dataset(), processing_class=processor)
    trainer.train()
    initialized = torch.distributed.is_initialized()
    found = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "backend": torch.distributed.get_backend() if initialized else None,
        "sharded": any(type(parameter).__name__ == "DTensor" for parameter in trainer.model.parameters()),
    }
    print("found " + json.dumps(found), flush=True)
    del trainer
    end_quietly(sharded=kind == "fsdp")


if __name__ == "__main__":
    main(*sys.argv[1:])
