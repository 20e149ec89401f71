"""The page of the evidence, from the pages of the benchmarks: `python -m benchmarks.evidence`.

evidence_notes.md has the words; a line such as `{{ photographs/RESULTS.md: Pools }}` stands for that section of a
page. Every page is that of the stored runs.
"""

import re
import shutil
from pathlib import Path

from benchmarks import beyond, beyond_report
from benchmarks.grid_runner import Store
from benchmarks.photographs import results
from benchmarks.photographs.report import markdown_table
from starft_hf.utils.files import write_text_atomically


FOLDER = Path(__file__).parent
NOTES = FOLDER / "evidence_notes.md"
PHOTOGRAPHS = FOLDER / "photographs" / "results.json"
PLOTS = {
    "photographs/methods.png": "photographs_methods.png",
    "photographs/pools.png": "photographs_pools.png",
    "photographs/correlations.png": "photographs_correlations.png",
    "zero_shot_shift.png": "zero_shot_shift.png",
    "shortcuts.png": "shortcuts.png",
}
CLASSES, CORRELATION = 6, 0.95
WORLDS = ("drawn", "photographs")
# Methods by their names in both worlds.
METHODS = {
    "FLYP": ("FLYP", "FLYP"),
    "WiSE-FT, tuned": (beyond_report.TUNED, results.TUNED),
    "kl": ("kl", "kl, right"),
    "star": ("star", "star, right"),
    "conditional": ("conditional", "conditional"),
    "conditional + attribution": ("conditional + attribution", "conditional + attribution"),
}
_INSERTED = re.compile(r"^\{\{ (.+): (.+) \}\}$", re.MULTILINE)


def section(page: str, title: str) -> str:
    """What stands under a heading of the second level on a page, or under all that begin with "title...".

    Raises:
        ValueError: if there is no such heading.
    """
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    if title.endswith("..."):
        under = [f"### {name}\n\n{text.strip()}" for name, text in found.items() if name.startswith(title[:-3])]
        return "\n\n".join(under)
    if title not in found:
        raise ValueError(f"there is no section {title!r}; there are {', '.join(found)}")
    return found[title].strip()


def drawn_world() -> dict[str, dict[tuple[str, int], dict[str, float]]]:
    """Worst group and average in % of every run of the drawn world, by method, on the task that both worlds have."""
    found: dict[str, dict[tuple[str, int], dict[str, float]]] = {}
    zero_shot = {}
    for entry in beyond_report.tested(Store(beyond.RESULTS)):
        if entry["classes"] == CLASSES and entry["correlation"] == CORRELATION:
            figures = {what: 100 * entry[what] for what in ("worst", "average")}
            if entry["method"] == "zero-shot":
                zero_shot[entry["base"]] = figures
            else:
                found.setdefault(entry["method"], {})[entry["base"], entry["seed"]] = figures
    # Zero-shot was run once per model.
    found["zero-shot"] = {run: zero_shot[run[0]] for run in found["FLYP"]}
    return found


def both_worlds() -> list[str]:
    """Differences to zero-shot on the task that both worlds have, with standard errors over seeds or draws."""
    drawn, photographs = drawn_world(), results.Results(Store(PHOTOGRAPHS))
    task = results.Task("A", CLASSES, CORRELATION)
    rows = []
    for name, (in_drawn, in_photographs) in METHODS.items():
        cells = []
        for what in ("worst", "average"):
            pairs = {run: own[what] - drawn["zero-shot"][run][what] for run, own in drawn[in_drawn].items()}
            # The seeds of the drawn world draw its images, as a draw does on photographs.
            cells += [results.estimate(pairs), photographs.difference(task, in_photographs, "zero-shot", what=what)]
        rows.append([name, *("" if cell is None else cell.signed for cell in cells)])
    header = ["Against zero-shot", *(f"{world}, {what}" for what in ("worst group", "average") for world in WORLDS)]
    return markdown_table(header, rows)


def filled(notes: Path) -> str:
    """Words with the sections of pages that they name."""

    def inserted(match: re.Match[str]) -> str:
        if match[1] == "both worlds":
            return "\n".join(both_worlds())
        return section((FOLDER / match[1]).read_text(encoding="utf-8"), match[2])

    return _INSERTED.sub(inserted, notes.read_text(encoding="utf-8"))


def page() -> str:
    """The page, in markdown."""
    return filled(NOTES)


def main(folder: Path = FOLDER.parent / "docs") -> None:
    """Write the page and copy its plots."""
    write_text_atomically(folder / "evidence.md", page())
    for source, target in PLOTS.items():
        if (FOLDER / source).exists():
            shutil.copyfile(FOLDER / source, folder / target)


if __name__ == "__main__":
    main()
