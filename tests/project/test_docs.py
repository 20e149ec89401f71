"""What `make docs` cannot tell: that nothing is missing, and that docstrings say what the code says."""

import logging
import re
import shlex
from pathlib import Path

import griffe
import pytest

import starft_hf
from starft_hf import evaluation, reference, report
from starft_hf.cli.main import make_parser
from starft_hf.evaluation import catalog, metrics


ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "reference").glob("*.md"))
DOCUMENTED = [name for page in PAGES for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)]
NOT_FOR_USERS = {
    "CachePlan",
    "ReferenceSettings",
    "make_live_reference",
    "make_reference",
    "plan_cache",
    "PUBLISHED_NOTE",
    "__version__",
}


def final_name(path):
    """Where something is defined: what is exported at the top is documented under its shortest name."""
    module, _, name = path.rpartition(".")
    for package in (starft_hf, evaluation, reference, report, catalog, metrics):
        if module == package.__name__ and name in package.__all__:
            thing = getattr(package, name)
            return f"{thing.__module__}.{thing.__qualname__}"
    return path


@pytest.mark.parametrize(
    "package", [starft_hf, evaluation, reference, report, catalog, metrics], ids=lambda m: m.__name__
)
def test_every_public_name_has_a_place_in_the_reference(package):
    documented = {final_name(path) for path in DOCUMENTED}
    # The page of the metrics takes this one from its module.
    documented.add(final_name("starft_hf.evaluation.metrics.metric_path"))
    public = [name for name in package.__all__ if name not in NOT_FOR_USERS]
    assert [name for name in public if final_name(f"{package.__name__}.{name}") not in documented] == []


def test_nothing_is_documented_twice():
    names = [final_name(path) for path in DOCUMENTED]
    assert sorted(names) == sorted(set(names))


def test_docstrings_name_the_parameters_that_there_are(caplog):
    """griffe warns of parameters that a signature does not have, and of sections that it cannot read."""
    package = griffe.load("starft_hf", search_paths=[ROOT])
    checked = 0

    def read(thing):
        nonlocal checked
        if thing.docstring is not None:
            thing.docstring.parse("google", warn_missing_types=False)
            checked += 1
        for member in thing.members.values():
            if not member.is_alias:
                read(member)

    with caplog.at_level(logging.WARNING, logger="griffe"):
        read(package)
    assert checked > 300
    assert [record.getMessage() for record in caplog.records] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f'"{page.relative_to(ROOT / "docs").as_posix()}"' in navigation


def test_the_commands_of_the_pages_are_ones_that_there_are():
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    pages = [page.read_text().replace("\\\n", " ") for page in files]
    lines = [line for page in pages for line in page.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if re.match(r"( {4})?starft ", line)]
    assert len(commands) > 8
    for command, *arguments in commands:
        options = make_parser(command).parse_args(arguments)
        # Of an iterable dataset, whose length is unknown.
        assert not getattr(options, "streaming", False) or options.max_steps > 0
