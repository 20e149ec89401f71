"""What averages of checkpoints refuse, and what a failure leaves behind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPModel

from starft_hf import greedy_soup, interpolate_checkpoints, uniform_soup
from starft_hf.models.loading import load_model
from starft_hf.utils.files import folder_in_place_of
from starft_hf.weights import folders as checkpoints_module
from tests.support.families import family
from tests.support.tiny import files_below, folder_of


def refused(runs, tmp_path):
    """All functions refuse the same, before anything is evaluated or written; adapters may be interpolated."""
    before = files_below(tmp_path)
    calls = [
        lambda: uniform_soup(runs, tmp_path / "soup"),
        lambda: interpolate_checkpoints(runs[0], runs[-1], 0.5, tmp_path / "soup"),
        lambda: greedy_soup(runs, tmp_path / "soup", lambda folder: pytest.fail("evaluated")),
    ]
    if any((run / "adapter_config.json").exists() for run in runs):
        calls.pop(1)
    messages = []
    for call in calls:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            call()
        messages.append(str(error.value))
    assert files_below(tmp_path) == before
    assert len(set(messages)) == 1
    return messages[0]


def test_another_architecture_is_refused_with_the_first_difference_and_both_folders(runs, tmp_path):
    family("clip")[0].save_pretrained(tmp_path / "other")
    message = refused([runs[0], tmp_path / "other"], tmp_path)
    assert message.startswith("the checkpoints differ: '")
    for part in (str(runs[0]), str(tmp_path / "other"), "only models of one architecture"):
        assert part in message


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2)}, "'b' is (1,) in "),
        ({"a": torch.zeros(2, 3)}, "'b' is (1,) in "),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(1), "c": torch.zeros(1)}, "'c' is nothing in "),
    ],
)
def test_the_first_difference_is_named(tmp_path, other, message):
    first = folder_of(tmp_path / "first", {"a": torch.zeros(2, 3), "b": torch.zeros(1)})
    second = folder_of(tmp_path / "second", other)
    assert message in refused([first, second], tmp_path)


def test_the_same_shapes_under_another_activation_are_refused(runs, clip, tmp_path):
    clip.config.vision_config.hidden_act = "gelu"
    CLIPModel(clip.config).save_pretrained(tmp_path / "gelu")
    assert "'vision_config.hidden_act' is 'quick_gelu' in" in refused([runs[0], tmp_path / "gelu"], tmp_path)


def damage(run, kind):
    weights = run / "model.safetensors"
    if kind == "adapter":
        (run / "adapter_config.json").write_text("{}")
    elif kind == "pickle":
        weights.rename(run / "pytorch_model.bin")
    elif kind == "no weights":
        weights.unlink()
    elif kind == "no configuration":
        (run / "config.json").unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif kind == "quantized":
        config = json.loads((run / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (run / "config.json").write_text(json.dumps(config))
    elif kind == "8 bits":
        save_file({"x": torch.zeros(2, dtype=torch.float8_e4m3fn)}, weights)
    elif kind == "no folder":
        shutil.rmtree(run)
    else:
        names = {"lost shard": "lost.safetensors", "outside": "../run-0/model.safetensors", "lost": "part.safetensors"}
        weights.rename(run / "part.safetensors")
        index = {"weight_map": {"not there": names[kind]}}
        (run / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("adapter", "holds an adapter.*merge it"),
        ("no weights", r"has neither model\.safetensors nor model\.safetensors\.index\.json"),
        ("no configuration", r"has no config\.json"),
        ("truncated", "cannot be read.*download it again"),
        ("quantized", "quantized weights"),
        ("8 bits", "'x' in .* is F8_E4M3"),
        ("no folder", "is not a folder.*snapshot_download"),
        ("lost shard", r"has no lost\.safetensors"),
        ("lost", "has no 'not there'"),
        ("outside", "outside of the folder"),
    ],
)
def test_what_cannot_be_averaged_is_refused(runs, tmp_path, kind, message):
    damage(runs[1], kind)
    found = refused([runs[0], runs[1]], tmp_path)
    assert str(runs[1]) in found
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        uniform_soup([runs[1]], tmp_path / "soup")


def test_pickles_are_read_for_interpolations_only(runs, tmp_path):
    damage(runs[1], "pickle")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, a pickle.*save_pretrained"):
        uniform_soup(runs, tmp_path / "soup")
    with pytest.raises(ValueError, match="no model could be loaded from"):
        interpolate_checkpoints(runs[0], runs[1], 0.5, tmp_path / "mixed")


def test_arguments_that_make_no_sense_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="checkpoints is empty"):
        uniform_soup([], tmp_path / "soup")
    with pytest.raises(ValueError, match="pass a list of folders"):
        uniform_soup(str(runs[0]), tmp_path / "soup")
    with pytest.raises(ValueError, match=r"alpha is 1\.5"):
        interpolate_checkpoints(runs[0], runs[1], 1.5, tmp_path / "soup")
    with pytest.raises(ValueError, match="huge"):
        greedy_soup(runs, tmp_path / "soup", lambda folder: pytest.fail("evaluated"), max_shard_size="huge")
    assert not (tmp_path / "soup").exists()


def test_nothing_is_ever_overwritten(runs, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (runs[1], tmp_path / "file"):
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        for call in (
            lambda output=output: uniform_soup(runs, output),
            lambda output=output: interpolate_checkpoints(runs[0], runs[1], 0.5, output),
            lambda output=output: greedy_soup(runs, output, lambda folder: pytest.fail("evaluated")),
        ):
            with pytest.raises(FileExistsError, match="would be overwritten"):
                call()
        assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    (tmp_path / "empty").mkdir()
    uniform_soup(runs, tmp_path / "empty")
    assert CLIPModel.from_pretrained(tmp_path / "empty")


def test_a_folder_that_fills_while_the_soup_is_made_is_left_alone(tmp_path):
    def write():
        with folder_in_place_of(tmp_path / "soup") as folder:
            (folder / "config.json").write_text("new")
            (tmp_path / "soup").mkdir()
            (tmp_path / "soup" / "config.json").write_text("of somebody else")

    with pytest.raises(FileExistsError):
        write()
    assert files_below(tmp_path) == ["soup", "soup/config.json"]
    assert (tmp_path / "soup" / "config.json").read_text() == "of somebody else"


# Failures


@pytest.mark.parametrize("shard", [1, 3])
def test_a_failure_in_the_middle_leaves_nothing_half_written(runs, tmp_path, monkeypatch, shard):
    before, written = files_below(tmp_path), []

    def save(*args, **kwargs):
        written.append(args)
        if len(written) == shard:
            raise OSError("no space left on device")
        save_file(*args, **kwargs)

    monkeypatch.setattr(checkpoints_module, "save_file", save)
    for call in (
        lambda: uniform_soup(runs, tmp_path / "soup", max_shard_size="200KB"),
        lambda: greedy_soup(runs, tmp_path / "soup", lambda folder: 0.5, max_shard_size="200KB"),
    ):
        written.clear()
        with pytest.raises(OSError, match="no space left"):
            call()
        assert files_below(tmp_path) == before


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "3", "\xff"])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, content):
    folder = folder_of(tmp_path / "odd", {"weight": torch.zeros(2)})
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json' cannot be read"):
        uniform_soup([folder, folder], tmp_path / "soup")
    with pytest.raises(ValueError, match=r"config\.json' cannot be read"):
        load_model(str(folder))
