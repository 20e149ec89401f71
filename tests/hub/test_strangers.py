"""What comes from a stranger's repository runs no code and reaches nothing outside of its folder."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from starft_hf import SpuriosityPool, StarFTConfig, StarFTTrainer
from starft_hf.hub.classifier import load
from starft_hf.hub.record import RECORD_FILE, public_id
from starft_hf.training.checkpointing.files import mark_complete, read_content
from starft_hf.utils.files import MOST_BYTES
from starft_hf.weights.folders import Checkpoint


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def saved(clip, processor, config, dataset, tmp_path):
    """A run with a checkpoint in its middle."""
    args = config(save_strategy="steps", save_steps=2, max_steps=4, output_dir=str(tmp_path / "run"))
    StarFTTrainer(clip, args, dataset, processing_class=processor).train()
    return tmp_path / "run"


PICKLED = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin"]


@pytest.mark.parametrize("name", PICKLED)
def test_resuming_runs_nothing_that_a_checkpoint_holds(clip, processor, config, dataset, saved, tmp_path, name):
    folder, marker = saved / "checkpoint-2", tmp_path / "exploded"
    content = {key: value for key, value in read_content(folder).items() if key not in ("format", "files")}
    torch.save(Bomb(marker), folder / name)
    mark_complete(folder, content)  # whoever plants something can also list it
    # The model has been trained by now, which makes it another run.
    args = config(max_steps=4, output_dir=str(tmp_path / "again"), ignore_mismatched_settings=True)
    trainer = StarFTTrainer(clip, args, dataset, processing_class=processor)
    # What no run reads is ignored; the others are refused, a scaler because the run has none to load its state.
    if name == "training_args.bin":
        trainer.train(resume_from_checkpoint=str(folder))
    else:
        with pytest.raises(Exception, match=r"(?i)weights.only|load_state_dict"):
            trainer.train(resume_from_checkpoint=str(folder))
    assert not marker.exists()


def test_weights_that_are_pickled_run_nothing(saved, processor, tmp_path):
    folder, marker = saved / "checkpoint-2", tmp_path / "exploded"
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(marker), folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|pickle"):
        load(folder)
    with pytest.raises(ValueError, match="a pickle, and opening one runs whatever code"):
        Checkpoint.open(folder)
    assert not marker.exists()


def test_settings_of_a_stranger_say_how_a_run_learns_and_not_what_it_touches(saved, tmp_path):
    path = saved / "checkpoint-2" / RECORD_FILE
    content = json.loads(path.read_text())
    reaching = {
        "output_dir": "/elsewhere",
        "logging_dir": "/elsewhere",
        "reference_cache_dir": "/elsewhere",
        "card_template": __file__,
        "push_to_hub": True,
        "hub_model_id": "stranger/model",
        "hub_token": "x",
        "report_to": ["wandb"],
        "resume_from_checkpoint": "/elsewhere",
        "deepspeed": "/elsewhere.json",
        "accelerator_config": "/elsewhere.json",
        "discovery_pool": "/elsewhere.pt",
    }
    content["config"] |= {**reaching, "reg_weight": 0.25}
    path.write_text(json.dumps(content))
    plain = StarFTConfig(output_dir=str(tmp_path / "mine"), use_cpu=True)
    found = StarFTConfig.from_pretrained(path.parent, output_dir=str(tmp_path / "mine"), use_cpu=True)
    assert found.reg_weight == 0.25
    for name in reaching:
        if name != "accelerator_config":
            assert getattr(found, name, None) == getattr(plain, name, None), name
    assert found.accelerator_config.to_dict() == plain.accelerator_config.to_dict()
    assert not os.path.exists("/elsewhere")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.update(config=[]),
        lambda content: content.update(pool={"templates": [{"weight": 1}]}),
        lambda content: content.update(class_names=[1, 2]),
        lambda content: content.update(start=[]),
        lambda content: content["config"].update(reg_weight=[]),
        lambda content: content["config"].update(caption_template={"a": 1}),
    ],
)
def test_records_of_the_wrong_kind_are_refused(saved, damage):
    path = saved / "checkpoint-2" / RECORD_FILE
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"starft\.json|caption_template has|reg_weight is \[\]"):
        StarFTConfig.from_pretrained(path.parent, output_dir="x", use_cpu=True)


@pytest.mark.parametrize("name", ["../../model.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_leads_nowhere_else(saved, name):
    folder = saved / "checkpoint-2"
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"logit_scale": name}}))
    with pytest.raises(ValueError, match="outside of the folder"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("content", ["[", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_that_is_damaged_is_refused(saved, content):
    folder = saved / "checkpoint-2"
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="copy or download it again"):
        Checkpoint.open(folder)


def test_a_head_that_is_damaged_is_refused(saved):
    folder = saved / "checkpoint-2"
    for metadata in (None, {"class_names": "["}, {"class_names": '["owl"]'}, {"class_names": "[" * 100_000}):
        tensors = {"weight": torch.ones(2, 32), "bias": torch.zeros(2)}
        save_file(tensors, folder / "classification_head.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match="copy or download it again"):
            load(folder)


def test_references_in_yaml_are_refused_before_they_multiply(tmp_path):
    lines = ["a0: &a0 ['{} x', '{} y']"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    (tmp_path / "pool.yaml").write_text("\n".join([*lines, "templates: ['{} x']", "metadata: *a39"]))
    with pytest.raises(ValueError, match="refers to parts of itself"):
        SpuriosityPool.load(tmp_path / "pool.yaml")
    (tmp_path / "pool.yaml").write_text("!!python/object/apply:os.system ['touch exploded']")
    with pytest.raises(ValueError, match="could not determine a constructor"):
        SpuriosityPool.load(tmp_path / "pool.yaml")


@pytest.mark.parametrize("name", ["pool.json", "pool.yaml", "pool.txt", "pool.pt", RECORD_FILE])
def test_files_that_are_too_large_are_not_read(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        # A hole: it takes no room on the disk.
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ValueError, match="takes no more than"):
        SpuriosityPool.load(tmp_path if name == RECORD_FILE else tmp_path / name)


def test_archives_that_unpack_to_too_much_are_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "pool.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pool/data.pkl", bytes(MOST_BYTES + 1))
    assert (tmp_path / "pool.pt").stat().st_size < 10**6
    with pytest.raises(ValueError, match="unpacks to"):
        SpuriosityPool.load(tmp_path / "pool.pt")


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 100_000])
@pytest.mark.parametrize("name", ["pool.json", "pool.yaml"])
def test_what_is_nested_too_deeply_is_refused(tmp_path, name, nested):
    (tmp_path / name).write_text(nested[:5000] if name.endswith("yaml") else nested)
    with pytest.raises(ValueError, match="could not be read as a spuriosity pool"):
        SpuriosityPool.load(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["../x", "a/../b", "x](http://evil)", "a/b/c", "owner/<b>", "a b/c", ".hidden/x", "\n"]
)
def test_only_what_can_be_a_repository_is_called_one(name):
    assert public_id(name) is None
    assert public_id("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"


def test_a_checkpoint_is_a_folder_of_its_own(saved):
    """Nothing of what a run saves is read from elsewhere: it can be moved."""
    moved = saved.parent / "moved"
    shutil.move(saved / "checkpoint-2", moved)
    assert load(moved).class_names is not None
