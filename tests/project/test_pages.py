"""Every block of the pages runs as it stands; only what needs the network is replaced by something tiny."""

import shutil

import datasets
import pytest
from datasets import DatasetDict

from tests.support.pages import PROGRAMS, ROOT, blocks_of, commands_of, run_blocks, run_command
from tests.support.tiny import make_dataset, write_captions, write_folder


# Pages whose blocks name data that there is no stand-in for, or that test_readme.py runs: test_docs.py parses them.
PARSED = {"installation.md", "your_data.md", "large_datasets.md", "paper.md", "supporting_another_model.md"}
PAGES = [
    page
    for folder in (ROOT / "docs", ROOT / "docs" / "reference")
    for page in sorted(folder.glob("*.md"))
    if page.name not in PARSED and blocks_of(page)
]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, spelling_clip):
    """A folder with what the pages begin with: photos, captions, and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("pages")
    for seed, split in enumerate(("train", "val", "test")):
        write_folder(folder / "photos", size=96, seed=seed, split=split)
        write_captions(folder / "flickr", seed=seed, split=split)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        groups = ["--group_column", "label", "place", "--output_dir", "robust"]
        run_command(["train", "--model", str(spelling_clip), "--dataset", "photos", *groups], spelling_clip)
    return folder


@pytest.fixture
def waterbirds(monkeypatch):
    """A stand-in with the columns of grodino/waterbirds."""
    splits = DatasetDict()
    for seed, name in enumerate(("train", "validation", "test")):
        rows = make_dataset(96, seed, class_names=["landbird", "waterbird"])
        splits[name] = rows.rename_column("group", "place")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page, stand_ins, waterbirds, spelling_clip, tmp_path, monkeypatch, capfd):
    for name in ("photos", "flickr"):
        shutil.copytree(stand_ins / name, tmp_path / name)
    # What a page evaluates and does not train itself.
    for name in ("robust", "clip-waterbirds-starft"):
        if f"--output_dir {name}\n" not in page.read_text(encoding="utf-8"):
            shutil.copytree(stand_ins / "robust", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    run_blocks(page, spelling_clip)
    own = [words for language, block in blocks_of(page) if language == "bash" for words in commands_of(block)]
    # Processes of their own print as well.
    assert capfd.readouterr().out or all(words[0] in PROGRAMS for words in own)


def test_pages_with_blocks_are_found():
    assert len(PAGES) > 8
