import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, CLIPModel

from starft_hf.demo.pretrain import MODEL_FOLDER, zero_shot_accuracy
from starft_hf.demo.world import draw_captioned


@pytest.fixture(scope="module")
def shipped():
    return CLIPModel.from_pretrained(MODEL_FOLDER), AutoProcessor.from_pretrained(MODEL_FOLDER)


def test_the_shipped_model_knows_the_clean_world(shipped):
    assert zero_shot_accuracy(*shipped) > 0.94


def test_the_shipped_model_pools_texts_at_their_end(shipped):
    model, processor = shipped
    assert model.config.text_config.eos_token_id == processor.tokenizer.eos_token_id != 2
    texts = ["a photo of a star.", "a photo of a star on the grass."]
    with torch.no_grad():
        together = model.get_text_features(**processor.tokenizer(texts, padding=True, return_tensors="pt"))
        alone = model.get_text_features(**processor.tokenizer(texts[:1], return_tensors="pt"))
    torch.testing.assert_close(together.pooler_output[:1], alone.pooler_output, rtol=0, atol=1e-5)


def test_the_shipped_model_has_a_token_for_every_word_it_is_trained_on(shipped):
    model, processor = shipped
    rng = np.random.default_rng(0)
    ids = {token for _ in range(1500) for token in processor.tokenizer(draw_captioned(rng)[1])["input_ids"]}
    assert processor.tokenizer.unk_token_id not in ids
    # No token is without use, except those for padding and for unknown words.
    assert len(ids) == len(processor.tokenizer) - 2 == model.config.text_config.vocab_size - 2


def run_pretraining(*arguments):
    command = [sys.executable, "-m", "starft_hf.demo.pretrain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_pretraining_overwrites_nothing(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    done = run_pretraining("--output", tmp_path, "--steps", 1)
    assert done.returncode == 2
    assert "not an empty folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_a_rebuild_reaches_the_same_zero_shot_accuracy(shipped, tmp_path):
    done = run_pretraining("--output", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    rebuilt = CLIPModel.from_pretrained(tmp_path / "model"), AutoProcessor.from_pretrained(tmp_path / "model")
    # Other processors round differently, and 600 steps amplify it.
    assert zero_shot_accuracy(*rebuilt) == pytest.approx(zero_shot_accuracy(*shipped), abs=0.03)
