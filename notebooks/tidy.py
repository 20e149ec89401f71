"""Tidies the notebooks and writes their index: no outputs, one layout, a badge in each.

    python notebooks/tidy.py            # after working on a notebook
    python notebooks/tidy.py --check    # changes nothing, and fails where something would change

A notebook begins with a cell of its title, a badge, and a paragraph that the index repeats.
"""

import json
import sys
from pathlib import Path


# Where the badges lead. A fork or a move changes this line and runs the script.
REPOSITORY = "starft-hf/starft_hf"

FOLDER = Path(__file__).parent
INDEX = FOLDER / "README.md"
# In the order of the index.
NAMES = (
    "quickstart",
    "lora_and_the_hub",
    "your_own_data",
    "spurious_features",
    "comparing_methods",
    "many_gpus",
)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
HEAD = """# Notebooks

Each notebook runs offline on a CPU in about a minute, on the tiny model and the images of the package. A switch in the
first cells uses real models and data instead, for a machine with a GPU. On Colab, the first cell installs the package;
in a clone, it installs the clone.

| Notebook | What it shows | |
| --- | --- | --- |
"""
TAIL = """
`make notebooks` runs all of them and checks their outputs. Notebooks are committed without outputs: run
`python notebooks/tidy.py` after editing one. It also writes this page.
"""


def badge(name: str) -> str:
    """The link that opens a notebook on Colab."""
    image = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({image})](https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{name}.ipynb)"


def tidy(name: str, text: str) -> tuple[str, str]:
    """A notebook as it is kept, and its row of the index.

    Raises:
        ValueError: if its first cell is not a title, a badge and a paragraph.
    """
    notebook = json.loads(text)
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"]).strip("\n")
        kept = {"cell_type": cell["cell_type"], "id": f"{name}-{number}", "metadata": {}}
        if cell["cell_type"] == "code":
            kept |= {"execution_count": None, "outputs": []}
        cells.append(kept | {"source": source})
    parts = cells[0]["source"].split("\n\n")
    if cells[0]["cell_type"] != "markdown" or len(parts) < 3 or not parts[0].startswith("# "):
        raise ValueError(f"{name}.ipynb begins with {parts[0]!r}; expected a title, a badge and a paragraph")
    cells[0]["source"] = "\n\n".join([parts[0], badge(name), *parts[2:]])
    row = f"| [{parts[0][2:]}]({name}.ipynb) | {' '.join(parts[2].split())} | {badge(name)} |\n"
    for cell in cells:
        cell["source"] = cell["source"].splitlines(keepends=True)
    kept = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True) + "\n", row


def tidied() -> dict[Path, str]:
    """What every file should hold."""
    files, rows = {}, []
    for name in NAMES:
        path = FOLDER / f"{name}.ipynb"
        files[path], row = tidy(name, path.read_text(encoding="utf-8"))
        rows.append(row)
    return {**files, INDEX: "".join([HEAD, *rows, TAIL])}


def main() -> int:
    """Write the files that differ; returns the exit code."""
    files = tidied()
    changed = [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(FOLDER.parent)} is not tidy; run python notebooks/tidy.py", file=sys.stderr)
        else:
            path.write_text(files[path], encoding="utf-8")
    return int(bool(changed) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
