"""A push takes the files of a model and what its owner names, and follows no link out of the folder."""

import copy
import io
import json
import pickle
import shutil

import pytest
import torch

from starft_hf import StarFTConfig
from starft_hf.hub.publishable import publishable
from starft_hf.models.heads import HEAD_FILE
from starft_hf.training.checkpointing.files import flaw_of
from starft_hf.training.checkpointing.publishing import copy_to_publish
from tests.support.resumed_run import make_trainer
from tests.support.tiny import TINY_CLIP


SECRETS = (".env", "id_rsa", "token", "notes/.env", "sub/training_args.bin", "secrets.safetensors", "notes/plan.md")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(TINY_CLIP, folder)
    for name in ("README.md", "starft.json", "figures/groups-0.png", HEAD_FILE, *SECRETS):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    for name in ("checkpoint-2", "damaged-checkpoint-1", "runs", ".uploading-checkpoint-1"):
        (folder / name).mkdir()
        (folder / name / "optimizer.pt").write_text(name)
    (folder / "training_args.bin").write_text("paths")
    return folder


def test_only_files_of_the_model_are_published_and_the_others_are_named(folder):
    chosen, others = publishable(folder)
    model = {path.relative_to(TINY_CLIP).as_posix() for path in TINY_CLIP.rglob("*") if path.is_file()}
    assert set(chosen) == model | {"README.md", "starft.json", "figures/groups-0.png", HEAD_FILE}
    assert set(others) == set(SECRETS)


def test_what_a_processor_and_an_adapter_save_is_published(tmp_path):
    trainer = make_trainer(tmp_path, peft_config="lora", max_steps=1, save_strategy="no")
    trainer.train()
    trainer.save_model()
    chosen, others = publishable(tmp_path / "output")
    assert {"adapter_model.safetensors", "adapter_config.json", "starft.json"} <= set(chosen)
    assert others == []


def test_further_files_are_named_by_paths_and_patterns(folder):
    chosen, others = publishable(folder, ["notes/*.md", "id_rsa"])
    assert {"notes/plan.md", "id_rsa"} <= set(chosen)
    assert "notes/.env" in others


def test_links_out_of_the_folder_are_not_followed(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.md").write_text("secret")
    for name in ("LICENSE", "notes/link.md"):
        (folder / name).symlink_to(tmp_path / "secret")
    (folder / "figures" / "out.png").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path / "more")
    (folder / "NOTICE").symlink_to(folder / "notes" / "plan.md")
    chosen, others = publishable(folder, ["notes/*.md", "linked/*"])
    assert {"LICENSE", "notes/link.md", "figures/out.png"} <= set(others)
    assert not any(name.startswith("linked/") for name in chosen)
    assert "NOTICE" in chosen


def test_no_pickle_of_the_settings_holds_the_token(tmp_path):
    args = StarFTConfig(output_dir=str(tmp_path), hub_token="hf_planted", use_cpu=True)
    file = io.BytesIO()
    torch.save(args, file)
    assert b"hf_planted" not in file.getvalue()
    assert pickle.loads(pickle.dumps(args)).learning_rate == args.learning_rate
    assert copy.deepcopy(args).hub_token == copy.copy(args).hub_token == "hf_planted"


def test_a_checkpoint_is_published_from_a_copy_that_names_no_path(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_accuracy"}
    trainer = make_trainer(tmp_path, max_steps=4, **best)
    trainer.train()
    checkpoint = tmp_path / "output" / "checkpoint-4"
    (checkpoint / "notes.txt").write_text("secret")
    copied = copy_to_publish(checkpoint)
    shutil.rmtree(checkpoint)
    assert flaw_of(copied) is None
    assert not (copied / "training_args.bin").exists()
    assert not (copied / "notes.txt").exists()
    assert json.loads((copied / "trainer_state.json").read_text())["best_model_checkpoint"].startswith("checkpoint-")
    for file in copied.rglob("*.json"):
        assert str(tmp_path) not in file.read_text()
