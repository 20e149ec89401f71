"""The notebooks, from top to bottom as they are kept, offline on the CPU: `make notebooks`."""

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from starft_hf.utils.plotting import SERIES
from tests.support.figures import pixels_of
from tests.support.hub_server import TOKEN, USER, serve
from tests.support.notebooks import FOLDER, NAMES, run


# Stands in for the Hub where a notebook is told to take real data.
STAND_IN = """
import datasets
from tests.support.tiny import make_dataset

rows = make_dataset(16, class_names=["landbird", "waterbird"], group_names=("land", "water"))
rows = rows.rename_column("group", "place")
datasets.load_dataset = lambda name: datasets.DatasetDict(train=rows, test=rows)
"""


def outputs(notebook, kind):
    """The contents of one type, or with "text" what was printed."""
    found = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    if kind == "text":
        return "".join(output.text for output in found if output.output_type == "stream" and output.name == "stdout")
    return [output.data[kind] for output in found if kind in output.get("data", {})]


def check_outputs(notebook):
    """A table with the worst group of at least two models, and plots in which there is something."""
    parts = (part for text in outputs(notebook, "text/markdown") for part in text.split("\n\n"))
    table = next(part for part in parts if "| worst group |" in part)
    head, _, *lines = (line.strip("| ").split(" | ") for line in table.splitlines())
    column = head.index("worst group")
    worst = {line[head.index("model")]: float(line[column].split(" ")[0]) for line in lines}
    assert len(worst) > 1
    assert all(0 <= value <= 100 for value in worst.values())
    pictures = [base64.b64decode(picture) for picture in outputs(notebook, "image/png")]
    for picture in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
        assert min(pixels.shape) > 150
        assert pixels.std() > 5
    # The figures of the report, in the colors of its page.
    expected = 2 if any("save_figures" in cell.source for cell in notebook.cells) else 0
    assert sum(min(pixels_of(picture)[color] for color in SERIES[:2]) > 100 for picture in pictures) >= expected
    return worst


@pytest.mark.slow
def test_quickstart(tmp_path):
    notebook = run("quickstart", tmp_path)
    worst = check_outputs(notebook)
    assert worst["StarFT"] > worst["FLYP"] + 10
    assert (tmp_path / "run-auto" / "model.safetensors").is_file()


@pytest.mark.slow
def test_quickstart_with_the_switch_for_real_models_and_data(tmp_path, spelling_clip):
    changes = {"REAL = False": "REAL = True", "openai/clip-vit-base-patch16": str(spelling_clip)}
    worst = check_outputs(run("quickstart", tmp_path, changes, STAND_IN))
    assert set(worst) == {"zero-shot", "FLYP", "StarFT"}


@pytest.mark.slow
def test_lora_and_the_hub(tmp_path):
    """With the switch that publishes, to a Hub on loopback."""
    with serve() as (hub, address):
        environment = {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        changes = {"PUSH = False": "PUSH = True", "    notebook_login()": "    print('logged in')"}
        notebook = run("lora_and_the_hub", tmp_path, changes, HF_DATASETS_OFFLINE="0", **environment)
    check_outputs(notebook)
    adapter, merged = (float(size) for size in re.findall(r"([\d.]+) MB", outputs(notebook, "text")))
    assert adapter < merged / 3
    for alone, together in re.findall(r": (0\.\d+), merged (0\.\d+)", outputs(notebook, "text")):
        assert abs(float(alone) - float(together)) < 1e-3
    assert any("## How to use" in text for text in outputs(notebook, "text/markdown"))
    assert set(hub.repos) == {f"{USER}/shapes-lora", f"{USER}/shapes-merged"}
    assert "adapter_model.safetensors" in hub.files(f"{USER}/shapes-lora")
    assert "model.safetensors" in hub.files(f"{USER}/shapes-merged")


@pytest.mark.slow
def test_your_own_data(tmp_path):
    notebook = run("your_own_data", tmp_path)
    assert set(check_outputs(notebook)) >= {"zero-shot", "FLYP", "star"}
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000
    # What the command prints for people.
    assert "expected calibration error" in "".join(outputs(notebook, "text/html"))


@pytest.mark.slow
def test_spurious_features(tmp_path):
    notebook = run("spurious_features", tmp_path)
    worst = check_outputs(notebook)
    assert worst["StarFT"] > worst["FLYP"]
    assert "{} on the water." in outputs(notebook, "text")
    # The heat map and the examples, and the two figures of the report.
    assert len(outputs(notebook, "image/png")) == 4
    estimated = re.findall(r"worst group ([\d.]+)% .*estimated ([\d.]+)%", outputs(notebook, "text"))
    assert len(estimated) == 2
    assert all(abs(float(true) - float(guess)) < 10 for true, guess in estimated)


@pytest.mark.slow
def test_comparing_methods(tmp_path):
    notebook = run("comparing_methods", tmp_path)
    worst = check_outputs(notebook)
    methods = {"CE", "FLYP", "L2-SP", "CAR-FT", "kl", "star"}
    assert set(worst) == {"zero-shot", *methods, *(f"{method} + WiSE-FT 0.5" for method in methods)}
    content = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert {run["seed"] for run in content["runs"]} == {0, 1}


@pytest.mark.slow
def test_many_gpus(tmp_path):
    """notebook_launcher with two processes, on the CPU."""
    notebook = run("many_gpus", tmp_path)
    worst = check_outputs(notebook)
    assert worst["StarFT, 2 processes"] == pytest.approx(worst["StarFT, 1 process"], abs=1)
    (difference,) = re.findall(r"2 processes and 1: losses differ by (\S+) ", outputs(notebook, "text"))
    assert float(difference) < 1e-4


def test_every_notebook_is_run_here():
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in NAMES if f'run("{name}"' not in source] == []
    assert len(NAMES) == 6


def test_notebooks_are_tidy_and_the_index_is_of_them():
    """Without outputs, with a badge each: what `python notebooks/tidy.py` leaves."""
    command = [sys.executable, str(FOLDER / "tidy.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        nbformat.validate(notebook)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
        badge = f"colab.research.google.com/github/starft-hf/starft_hf/blob/main/notebooks/{name}.ipynb"
        assert badge in notebook.cells[0].source
        assert f"]({name}.ipynb)" in index
        assert badge in index


def test_an_untidy_notebook_is_told(tmp_path):
    for path in FOLDER.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    notebook = nbformat.read(tmp_path / "quickstart.ipynb", as_version=4)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.outputs = [nbformat.v4.new_output("stream", text="left over")]
    nbformat.write(notebook, tmp_path / "quickstart.ipynb")
    tidy = [sys.executable, str(tmp_path / "tidy.py")]
    done = subprocess.run([*tidy, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "quickstart.ipynb is not tidy" in done.stderr
    subprocess.run(tidy, check=True)
    kept = (FOLDER / "quickstart.ipynb").read_text(encoding="utf-8")
    assert (tmp_path / "quickstart.ipynb").read_text(encoding="utf-8") == kept


def test_links_between_notebooks_lead_somewhere():
    for name in NAMES:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        for cell in notebook.cells:
            for target in re.findall(r"\]\((?!http)([^)#]+)\)", cell.source):
                assert (FOLDER / target).is_file(), target
