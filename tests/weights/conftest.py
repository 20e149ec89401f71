"""Checkpoints to average."""

import pytest
import torch
from transformers import CLIPModel


@pytest.fixture
def runs(clip, processor, tmp_path):
    """Three checkpoints of one architecture; the first has a processor."""
    folders = []
    for seed in range(3):
        torch.manual_seed(seed)
        folders.append(tmp_path / f"run-{seed}")
        CLIPModel(clip.config).save_pretrained(folders[-1])
    processor.save_pretrained(folders[0])
    return folders
