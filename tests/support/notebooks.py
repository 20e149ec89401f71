"""Notebooks that are executed offline on the CPU, far from the checkout."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
# A cell that hangs must not hang the tests; none takes a tenth of this.
SECONDS_PER_CELL = 600


def run(name, folder, changes=None, first=None, **environment):
    """The executed notebook, with its switches changed and a cell put in front."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for old, new in (changes or {}).items():
        assert any(old in cell.source for cell in notebook.cells), old
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    if first is not None:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    # Kernels look for the package where they run, which is far from the checkout.
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(
        notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**settings, **environment})
    return notebook
