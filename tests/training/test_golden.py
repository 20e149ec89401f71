"""Figures of the paper's own code, reproduced through the public API in float64."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPModel

from starft_hf import StarFTConfig, StarFTTrainer, alignment_loss, contrastive_loss
from tests.support.device import USE_CPU


GOLDEN = Path(__file__).parents[1] / "golden"
RUNS = ["contrastive_star_diminishing", "contrastive_kl", "contrastive_none", "cross_entropy_star"]
PRESET = "contrastive_star_diminishing, by the preset"

LOSS_CASES = json.loads((GOLDEN / "losses" / "losses.json").read_text())


@pytest.mark.parametrize("case", range(len(LOSS_CASES)))
@pytest.mark.parametrize("loss", ["star", "kl", "contrastive"])
def test_losses_and_their_gradients(case, loss):
    figures = LOSS_CASES[case]
    tensors = load_file(GOLDEN / "losses" / "losses.safetensors")
    tensor = lambda name: tensors[f"{case}.{name}"]  # noqa: E731
    image, spurious = tensor("image").requires_grad_(), tensor("spurious").requires_grad_()
    if loss == "contrastive":
        value = contrastive_loss(image, spurious, figures["logit_scale"])
    else:
        value = alignment_loss(
            image,
            spurious,
            tensor("reference_image"),
            tensor("reference_spurious"),
            figures["logit_scale"],
            labels=tensor("labels") if loss == "star" else None,
        )
    value.backward()

    assert value.item() == pytest.approx(figures[loss], abs=1e-9)
    torch.testing.assert_close(image.grad, tensor(f"{loss}.grad_image"), rtol=0, atol=1e-9)
    torch.testing.assert_close(spurious.grad, tensor(f"{loss}.grad_spurious"), rtol=0, atol=1e-9)


@pytest.fixture(scope="module", params=[*RUNS, PRESET])
def golden_run(request, tmp_path_factory):
    """A golden run's folder, its settings and figures, and a trainer that has just repeated it."""
    run = request.param.split(",")[0]
    folder = GOLDEN / run
    trajectory = json.loads((folder / "trajectory.json").read_text())
    model = CLIPModel.from_pretrained(folder / "model", dtype=torch.float64)
    train_dataset = Dataset.from_parquet(
        str(folder / "train.parquet"), cache_dir=str(tmp_path_factory.mktemp("datasets"))
    )
    adam = trajectory["adam"]
    # What the preset of the paper sets to the same.
    papers = {
        "base_loss": trajectory["loss_type"],
        "regularizer": trajectory["regularizer"] or "none",
        "reg_weight": trajectory["reg_weight"],
        "reg_schedule": "epoch_linear" if trajectory["diminishing"] else "constant",
        "weight_decay": trajectory["weight_decay"],
        "max_grad_norm": 0,
        **dict(zip(("adam_beta1", "adam_beta2", "adam_epsilon"), adam, strict=True)),
    }
    make_config = StarFTConfig.paper if request.param == PRESET else partial(StarFTConfig, **papers)
    trainer = StarFTTrainer(
        model=model,
        args=make_config(
            output_dir=str(tmp_path_factory.mktemp(run)),
            per_device_train_batch_size=trajectory["per_device_train_batch_size"],
            num_train_epochs=trajectory["num_train_epochs"],
            learning_rate=trajectory["learning_rate"],
            warmup_steps=0,
            # Nothing random.
            train_sampling_strategy="sequential",
            crop_scale=None,
            logging_steps=1,
            report_to="none",
            use_cpu=USE_CPU,
            disable_tqdm=True,
        ),
        train_dataset=train_dataset,
        spuriosity=trajectory["spurious_templates"],
    )
    trainer.train()
    return folder, trajectory, trainer, train_dataset


def test_every_step_of_a_run(golden_run):
    _, trajectory, trainer, _ = golden_run
    steps = [entry for entry in trainer.state.log_history if "base_loss" in entry]
    assert len(steps) == len(trajectory["steps"])
    for logged, expected in zip(steps, trajectory["steps"], strict=True):
        assert logged["step"] == expected["step"]
        assert logged["learning_rate"] == pytest.approx(expected["lr"], abs=1e-12)
        for name in ("loss", "base_loss", "reg_loss", "reg_weight", "logit_scale"):
            if expected[name] is None:
                continue
            assert logged[name] == pytest.approx(expected[name], abs=1e-6), (name, expected["step"])


def test_final_embeddings_of_a_run(golden_run):
    folder, trajectory, trainer, train_dataset = golden_run
    expected = load_file(folder / "embeds.safetensors")
    processor = AutoProcessor.from_pretrained(folder / "model")
    captions = [trajectory["caption_template"].format(name) for name in train_dataset.features["label"].names]
    inputs = processor(images=train_dataset["image"][:], text=captions, padding=True, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        outputs = trainer.model.cpu().eval()(**inputs)
    torch.testing.assert_close(outputs.image_embeds, expected["final_image_embeds"], rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs.text_embeds, expected["final_caption_embeds"], rtol=0, atol=1e-6)
