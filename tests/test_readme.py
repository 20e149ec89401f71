"""The README's examples run as they stand; only what needs the network is replaced by something tiny."""

import re
import shlex
from pathlib import Path

import datasets
import pytest
from datasets import DatasetDict

from starft_hf.cli import main
from starft_hf.demo.experiment import METHODS
from tests.conftest import TINY_CLIP, make_dataset, write_folder


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def waterbirds(monkeypatch):
    """A stand-in with the columns of grodino/waterbirds."""
    rows = make_dataset(16, class_names=["landbird", "waterbird"]).rename_column("group", "place")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: DatasetDict(train=rows, test=rows))


@pytest.mark.parametrize("example", EXAMPLES)
def test_python_examples_run(example, waterbirds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = example.replace("openai/clip-vit-base-patch16", str(TINY_CLIP))
    # The test asks whether it runs, not how good it gets.
    example = example.replace("max_steps=100", "max_steps=2").replace(
        'make_split("test")', 'make_split("test", size=24)'
    )
    exec(compile(example, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert any(words in shown for words in ("eval_worst_group_accuracy", "worst group: ", "| FLYP |"))
    assert list(tmp_path.glob("*/model.safetensors")) or (tmp_path / "report" / "report.html").is_file()


COMMANDS = re.findall(r"^starft .*$", README, re.MULTILINE)


def test_the_commands_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos")
    write_folder(tmp_path / "photos", seed=1, split="test")
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        arguments = shlex.split(command.replace("openai/clip-vit-base-patch16", str(TINY_CLIP)))[1:]
        quick = ["--max_steps", "2", "--use_cpu"] if arguments[0] == "train" else []
        assert main([*arguments, *quick]) == 0
        assert "worst group" in capsys.readouterr().out


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


def test_the_table_is_that_of_the_stored_run():
    table = (ROOT / "benchmarks" / "demo" / "table.md").read_text(encoding="utf-8")
    assert table in README
    assert all(f"| {method} |" in table for method in METHODS)


def test_links_and_make_targets_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_settings_that_the_readme_names_exist():
    from starft_hf import StarFTConfig

    table = README.split("| Setting of `StarFTConfig`")[1].split("\n\n")[0]
    fields = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert len(fields) > 4
    assert fields <= set(StarFTConfig.__dataclass_fields__)
