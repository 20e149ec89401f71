"""Runs of `starft predict`: stopped and resumed, in several processes, and beside an evaluation."""

import json
import os
import signal
import sys
import time

import pytest
from datasets import concatenate_datasets

from starft_hf.cli import main
from starft_hf.hub.prediction import blocks
from starft_hf.utils.store import FeatureStore
from tests.support.folders import write
from tests.support.launch import torchrun
from tests.support.tiny import CLASS_NAMES, TINY_CLIP, make_dataset


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Enough images for three blocks, in a Parquet file."""
    few = make_dataset(24, image_size=8)
    file = tmp_path_factory.mktemp("many") / "many.parquet"
    concatenate_datasets([few.select(range(start, 24)) for start in range(24)] * 2).to_parquet(file)
    return file


def in_child(body):
    """Fork a process, which need not import anything anew; returns how it ended."""
    child = os.fork()
    if not child:
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            os._exit(body() or 0)
        except SystemExit as stopped:
            os._exit(stopped.code)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("streaming", [[], ["--streaming"]], ids=["indexed", "streaming"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_a_run_that_was_stopped_resumes(number, streaming, many, tmp_path, monkeypatch, capsys):
    def command(output, *more):
        return ["predict", *map(str, (TINY_CLIP, many, "-o", tmp_path / output)), *streaming, *more, "--json"]

    assert main(command("whole.csv")) == 0
    expected = json.loads(capsys.readouterr().out)
    assert expected["rows"] == 600

    def stopped():
        save, saved = FeatureStore.save, []

        def save_and_stop(store, kind, key, rows):
            saved.append(save(store, kind, key, rows))
            if len(saved) == 2:
                os.kill(os.getpid(), number)
                time.sleep(0.01)

        FeatureStore.save = save_and_stop
        return main(command("out.csv"))

    assert in_child(stopped) == (75 if number == signal.SIGTERM else -number)
    left = tmp_path / "out.csv.unfinished"
    assert len(list(left.glob("*.safetensors"))) == 2
    assert not (tmp_path / "out.csv").exists()
    # What is of another run, or damaged, is not used.
    first = min(left.iterdir())
    (left / first.name.replace("predictions-", "predictions-0")).write_bytes(first.read_bytes())
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(bytes(content))
    computed = []
    rate = blocks._of_batch
    monkeypatch.setattr(blocks, "_of_batch", lambda batch, own: computed.append(rate(batch, own)) or computed[-1])
    assert main(command("out.csv")) == 0
    shown = capsys.readouterr()
    assert sum(map(len, computed)) == 256 + 600 - 512
    assert "1 blocks of predictions of another model, other images or other settings" in shown.err
    assert {**json.loads(shown.out), "output": expected["output"]} == expected
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not left.exists()
    # Finished: nothing is overwritten unasked.
    assert main(command("out.csv")) == 2
    assert "exists" in capsys.readouterr().err
    assert main(command("out.csv", "--overwrite", "--top_k", "1")) == 0
    assert (tmp_path / "out.csv").read_text().startswith(("row,prediction,confidence,label\n", "file,"))


@pytest.mark.slow
# Of four processes, one has no block.
@pytest.mark.parametrize(("processes", "streaming"), [(2, []), (4, ["--streaming"])])
def test_several_processes_write_what_one_does(processes, streaming, many, tmp_path):
    arguments = ["predict", TINY_CLIP, many, *streaming, "--json"]
    assert main([*map(str, arguments), "-o", str(tmp_path / "one.csv")]) == 0
    done = torchrun(processes, "-m", "starft_hf", *arguments, "-o", tmp_path / "several.csv")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["rows"] == 600
    assert (tmp_path / "several.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv", "several.csv"]


def test_the_dataset_itself_is_not_overwritten(tmp_path, capsys):
    write(tmp_path, {"a.png": None, "t.csv": "path\na.png\n"})
    table = str(tmp_path / "t.csv")
    assert main(["predict", str(TINY_CLIP), table, "-o", table, "--overwrite", "--class_names", *CLASS_NAMES]) == 2
    assert "is the dataset itself" in capsys.readouterr().err


def test_the_accuracy_is_that_of_an_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, [f"{name}/{place}.png" for name in CLASS_NAMES for place in range(3)])
    arguments = [str(TINY_CLIP), ".", "--json"]
    assert main(["evaluate", *arguments]) == 0
    expected = json.loads(capsys.readouterr().out)["accuracy"]
    for more in (["--image_cache", "cache"], ["--workers", "1"]):
        assert main(["predict", *arguments, "-o", "../out.csv", "--overwrite", *more]) == 0
        assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(expected)
