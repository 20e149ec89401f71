"""Averages of checkpoints on disk. The hand-computed ones are in float64."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoProcessor, CLIPModel

from starft_hf import greedy_soup, interpolate, interpolate_checkpoints, uniform_soup
from starft_hf.models.heads import load_head, save_head
from starft_hf.weights import folders as checkpoints_module
from tests.support.tiny import files_below, folder_of


def values(folder):
    return load_file(folder / "model.safetensors")


def weights(folder):
    return CLIPModel.from_pretrained(folder, dtype="auto").state_dict()


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype
        assert torch.equal(value, right[name]), name


# What is computed


def test_a_uniform_soup_is_the_mean_and_loads_as_a_model(runs, tmp_path):
    assert uniform_soup(runs, tmp_path / "soup") == tmp_path / "soup"
    parts = [weights(run) for run in runs]
    for name, value in weights(tmp_path / "soup").items():
        if value.is_floating_point():
            exact = torch.stack([part[name].double() for part in parts]).mean(0)
            assert torch.equal(value, exact.float()), name
    assert AutoProcessor.from_pretrained(tmp_path / "soup").tokenizer.get_vocab()


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 0.9, 1])
def test_interpolation_on_disk_is_that_of_loaded_models(clip, tmp_path, dtypes, alpha):
    models = [clip, CLIPModel(clip.config)]
    for number, (model, dtype) in enumerate(zip(models, dtypes, strict=True)):
        model.to(getattr(torch, dtype)).save_pretrained(tmp_path / str(number))
    interpolate_checkpoints(tmp_path / "0", tmp_path / "1", alpha, tmp_path / "mixed")
    assert_same(weights(tmp_path / "mixed"), interpolate(*models, alpha).state_dict())


def test_shards_give_the_same_as_one_file(runs, tmp_path):
    parts = []
    for run in runs:
        parts.append(tmp_path / f"sharded-{run.name}")
        CLIPModel.from_pretrained(run).save_pretrained(parts[-1], max_shard_size="200KB")
        assert (parts[-1] / "model.safetensors.index.json").exists()
    whole = uniform_soup(runs, tmp_path / "whole")
    joined = uniform_soup(parts, tmp_path / "joined")
    split = uniform_soup(runs, tmp_path / "split", max_shard_size="200KB")
    mixed = uniform_soup([parts[0], *runs[1:]], tmp_path / "mixed", max_shard_size=100_000)
    assert [file.name for file in whole.glob("model*")] == ["model.safetensors"]
    assert_same(values(whole), values(joined))
    for folder in (split, mixed):
        assert len(list(folder.glob("model-*.safetensors"))) > 2
        assert not (folder / "model.safetensors").exists()
        assert_same(weights(folder), weights(whole))
    assert max(file.stat().st_size for file in split.glob("*.safetensors")) < 210_000


def test_the_first_checkpoint_gives_dtype_and_integers(tmp_path):
    numbers = {"weight": torch.tensor([1.0, 2.0]).bfloat16(), "count": torch.tensor([3])}
    first = folder_of(tmp_path / "first", numbers)
    second = folder_of(tmp_path / "second", {"weight": torch.tensor([2.0, 4.0]), "count": torch.tensor([5])})
    soup = values(uniform_soup([first, second], tmp_path / "soup"))
    assert_same(soup, {"weight": torch.tensor([1.5, 3.0]).bfloat16(), "count": torch.tensor([3])})
    soup = values(interpolate_checkpoints(second, first, 0.25, tmp_path / "mixed"))
    assert_same(soup, {"weight": torch.tensor([1.75, 3.5]), "count": torch.tensor([5])})


floats = st.floats(allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(floats, max_size=6), st.integers(1, 9), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_a_soup_of_equals_is_each_of_them(tmp_path_factory, numbers, count, dtype):
    tmp_path = tmp_path_factory.mktemp("equals")
    tensor = torch.tensor(numbers).to(getattr(torch, dtype))
    folder = folder_of(tmp_path / "run", {"weight": tensor})
    soup = values(uniform_soup([folder] * count, tmp_path / "soup"))["weight"]
    # Bytes, since zero has two signs.
    assert soup.dtype == tensor.dtype
    assert torch.equal(soup.view(torch.uint8), tensor.view(torch.uint8))
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("piece", [1, 7, 64])
def test_the_size_of_the_pieces_makes_no_difference(tmp_path, monkeypatch, piece):
    small = {name: torch.randn(3, 5) for name in "ab"} | {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4)}
    folders = [folder_of(tmp_path / "a", small), folder_of(tmp_path / "b", {k: v * 3 for k, v in small.items()})]
    monkeypatch.setattr(checkpoints_module, "_PIECE", piece)
    soup = values(uniform_soup(folders, tmp_path / "soup"))
    assert_same(soup, {name: (value.double() * 2).float() for name, value in small.items()})
    mixed = values(interpolate_checkpoints(*folders, 0.5, tmp_path / "mixed"))
    torch.testing.assert_close(mixed, soup)


def test_heads_of_cross_entropy_runs_are_averaged_with_their_encoders(runs, tmp_path):
    for run, value in zip(runs, (1.0, 2.0, 6.0), strict=True):
        save_head({"weight": torch.full((2, 4), value), "bias": torch.tensor([value, 0.0])}, ["owl", "fern"], run)
    head, names = load_head(uniform_soup(runs, tmp_path / "soup"))
    assert names == ["owl", "fern"]
    assert torch.equal(head.weight, torch.full((2, 4), 3.0))
    assert torch.equal(head.bias, torch.tensor([3.0, 0.0]))
    save_head({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, ["fern", "owl"], runs[1])
    with pytest.raises(
        ValueError, match=r"'class names of the head' is \('owl', 'fern'\) in .* and \('fern', 'owl'\)"
    ):
        uniform_soup(runs, tmp_path / "other")
    (runs[1] / "classification_head.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'classification_head\.\w+' is .* and nothing in .*run-1"):
        uniform_soup(runs, tmp_path / "other")


def test_only_what_belongs_to_the_model_is_copied(runs, tmp_path):
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "ema.safetensors", "README.md"):
        (runs[0] / name).write_text("{}")
    (runs[0] / "modeling_other.py").write_text("")
    expected = {"config.json", "model.safetensors", "modeling_other.py"}
    expected |= {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(files_below(uniform_soup(runs, tmp_path / "soup"))) == expected


def test_a_link_out_of_the_folder_is_not_copied(runs, tmp_path):
    """Whoever made the folder could otherwise publish any file of the machine that makes the soup."""
    (tmp_path / "secret.json").write_text('{"password": 1}')
    (runs[0] / "notes.json").symlink_to("../secret.json")
    (runs[0] / "absolute.txt").symlink_to(tmp_path / "secret.json")
    (runs[0] / "own.json").symlink_to("config.json")
    copied = files_below(uniform_soup(runs, tmp_path / "soup"))
    assert "own.json" in copied
    assert not {"notes.json", "absolute.txt"} & set(copied)
    shutil.move(runs[0] / "config.json", tmp_path / "config.json")
    (runs[0] / "config.json").symlink_to("../config.json")
    with pytest.raises(FileNotFoundError, match=r"no config\.json of its own"):
        uniform_soup(runs, tmp_path / "other")


def test_snapshots_in_the_cache_of_the_hub_are_links_to_its_blobs(runs, tmp_path):
    """Blobs of the repository, or of the cache, which may hold those that several repositories share."""
    repository = tmp_path / "hub" / "models--someone--model"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    shared = tmp_path / "hub" / "blobs" / "ab"
    shared.mkdir(parents=True)
    for number, file in enumerate(sorted(runs[0].iterdir())):
        blob = repository / "blobs" / str(number)
        shutil.copyfile(file, blob)
        if file.name == "tokenizer.json":
            shutil.move(blob, shared / "abab")
            blob.symlink_to("../../blobs/ab/abab")
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (tmp_path / "hub" / "token.json").write_text("secret")
    (snapshot / "notes.json").symlink_to("../../../token.json")
    soup = uniform_soup([snapshot], tmp_path / "soup")
    assert files_below(soup) == files_below(runs[0])
    assert_same(values(soup), values(runs[0]))


# The greedy soup


def numbers(tmp_path, *scalars):
    """Checkpoints of one number."""
    return [folder_of(tmp_path / "runs" / f"{value}", {"x": torch.tensor([value])}) for value in scalars]


def test_a_greedy_soup_adds_what_does_not_make_it_worse(tmp_path):
    """The score of x is -|x - 1|. Means: 1.05 of the best two, 1.7 with 3, 0.6 with -0.3, all by hand."""
    runs = numbers(tmp_path, 3.0, 0.5, -0.3, 1.6)
    evaluated, means = [], []

    def evaluate(folder):
        evaluated.append(folder)
        means.append(len(list(tmp_path.glob(".soup*/soup-*"))))
        return -abs(values(folder)["x"].item() - 1)

    soup = greedy_soup(runs, tmp_path / "soup", evaluate)
    assert soup.folder == tmp_path / "soup"
    assert soup.chosen == (runs[1], runs[3])
    assert soup.score == pytest.approx(-0.05)
    assert [trial.checkpoint.name for trial in soup.trials] == ["0.5", "1.6", "-0.3", "3.0"]
    assert [trial.own_score for trial in soup.trials] == pytest.approx([-0.5, -0.6, -1.3, -2.0])
    assert [trial.score for trial in soup.trials] == pytest.approx([-0.5, -0.05, -0.4, -0.7])
    assert [trial.chosen for trial in soup.trials] == [True, True, False, False]
    assert evaluated[:4] == runs
    assert max(means) == 1
    assert_same(values(soup.folder), values(uniform_soup(soup.chosen, tmp_path / "uniform")))
    assert files_below(soup.folder) == files_below(tmp_path / "uniform")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "soup", "uniform"}


def test_a_greedy_soup_may_be_one_checkpoint_or_all(tmp_path):
    runs = numbers(tmp_path, 1.0, 2.0, 4.0)
    alone = greedy_soup(runs, tmp_path / "alone", lambda folder: float(values(folder)["x"]))
    assert alone.chosen == (runs[2],)
    assert_same(values(alone.folder), values(runs[2]))
    equal = greedy_soup(runs, tmp_path / "all", lambda folder: 0.5)
    assert equal.chosen == tuple(runs)
    assert values(equal.folder)["x"].item() == pytest.approx(7 / 3)


@pytest.mark.parametrize("returned", [None, {"accuracy": 0.5}, float("nan")])
@pytest.mark.parametrize("at", [1, 3])
def test_a_score_that_is_not_a_number_is_refused_and_nothing_is_left(tmp_path, returned, at):
    runs, calls = numbers(tmp_path, 1.0, 2.0), []

    def evaluate(folder):
        calls.append(folder)
        return returned if len(calls) == at else 0.5

    with pytest.raises(ValueError, match="evaluate returned"):
        greedy_soup(runs, tmp_path / "soup", evaluate)
    assert files_below(tmp_path)[0] == "runs"
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
