"""What a user reads is in plain English, by the glossary of the house: no word of its left column."""

import re

import pytest

from starft_hf.cli.main import COMMANDS, make_parser
from tests.support.pages import ROOT


# What is written instead: correlated, cached, valid checkpoint, resume, skip, image, dataset, alpha, warns, raises...
AVOIDED = re.compile(
    r"go(es|ing)? together|remember|good checkpoint|\bgo(es)? on from|passed over|data sets?\b"
    r"|(?<!<)(?<!</)\bpictures?\b(?! of a \{\})"
    r"|is (a number from|there twice|told)|are told|told of|\bhears\b|is said to|let go of|takes leave|for want of"
    r"|for nothing\b|price of|in 0\.\d+ of its time|spelled out|share of (the )?(fine-tuned )?weights"
    r"|\bas ever\b|for the time being|one's own|in the mean\b|takes part with|command line wins",
    re.IGNORECASE,
)
FILES = sorted(
    path
    for pattern in (
        "*.md",
        ".github/**/*.*",
        "docs/**/*.md",
        "notebooks/*.ipynb",
        "notebooks/*.md",
        "examples/*.py",
        "benchmarks/**/*.md",
    )
    for path in ROOT.glob(pattern)
    if path.name not in ("CODE_OF_CONDUCT.md",)
)


def avoided_in(text):
    """The lines with a word to avoid."""
    return [line.strip()[:120] for line in text.splitlines() if AVOIDED.search(line)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_in_plain_words(path):
    assert avoided_in(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_in_plain_words(command):
    assert avoided_in(make_parser(command).format_help()) == []


def test_docstrings_messages_and_templates_are_in_plain_words():
    found = {}
    for path in sorted((ROOT / "starft_hf").rglob("*")):
        if path.suffix in (".py", ".jinja", ".yaml") and (lines := avoided_in(path.read_text(encoding="utf-8"))):
            found[path.relative_to(ROOT).as_posix()] = lines
    # A column of that name is found, and a caption of the demo's pre-training.
    assert set(found) <= {"starft_hf/data/shards/parquet.py", "starft_hf/demo/world.py"}
