"""The results of `benchmarks.audit` for people: how well the score ranks models, and what is found of shortcuts."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import audit_photographs
from benchmarks.audit import METHODS, SETS, SHORTCUTS, SHOWN, STRENGTHS, rank_correlation, ranked, searches
from benchmarks.audit_photographs import of_draw, photographed
from benchmarks.grid_runner import Store
from benchmarks.shortcuts_report import is_named, is_wrong, rate, searched
from starft_hf.utils.files import write_text_atomically


Searched = list[dict[str, Any]]

_HEADER = """# What an audit can tell

By `python -m benchmarks.audit`, on the demo's world. What is not in the tables was not run. Made from `audit.json`.
"""

_RANKING = """
## Does the score rank models?

Spearman correlations with the accuracy in the true worst group of a balanced test set, over {models} fine-tuned models
({methods}) of seeds that the score was not
defined on. Audits see {size} images and no group labels.

| Audited images | The score | The average accuracy |
| --- | ---: | ---: |
"""

_PHOTOGRAPHS = """
## Does it on photographs?

The same over {models} fine-tuned models A of `benchmarks.photographs` ({methods}), six classes,
correlations of 0.5 to 1. Audits see 480 validation images and no group labels; the true worst group is that of 960
test images of other cut-outs and photographs. Models of one draw are audited on the same images, and the last row is
the mean over draws.

| Audited images | The score | The average accuracy |
| --- | ---: | ---: |
"""

_DISCOVERY = """
## What is found without a pool

Up to three shortcuts are planted in {sets} training sets of 480 images: a background (grass or water), which words of
the vocabulary name, a border and a tint, which properties of images measure. A class shows a planted one in the share
that is given, and the other half of the classes in what is left. The package's small model embeds the images; nothing
is trained. In %, with binomial standard errors (Agresti and Coull) and the number of sets.

Something else need not be false: the shapes of classes differ, and a border is bright. With shuffled labels nothing is
true; the bound is 5%.

| Planted | Background found | Border found | Tint found | Something else found | Found with shuffled labels |
| --- | ---: | ---: | ---: | ---: | ---: |
"""


def discovery_table(rows: Searched) -> list[str]:
    """Power, what else is found, and false discoveries, by number of shortcuts and strength."""
    conditions = {"nothing": [row for row in rows if not row["number"]]}
    for number in range(1, 1 + len(SHORTCUTS)):
        for strength in STRENGTHS:
            own = [row for row in rows if (row["number"], row["strength"]) == (number, strength)]
            conditions[f"{number} at {strength:g}"] = own
    lines = []
    for name, own in conditions.items():
        powers = [
            rate([row for row in own if shortcut in row["planted"]], is_named(shortcut)) for shortcut in SHORTCUTS
        ]
        errors = [rate(own, is_wrong), rate(own, lambda row: bool(row["shuffled"]))]
        lines.append(f"| {name} | {' | '.join([*powers, *errors])} |")
    return [*lines, f"| all | | | | | {rate(rows, lambda row: bool(row['shuffled']))} |"]


def others(rows: Searched) -> str:
    """The five things that are found most often and were not planted, those of equal counts by name."""
    counts = Counter(text for row in rows for text in row["others"])
    most = sorted(counts, key=lambda text: (-counts[text], text))[:5]
    return ", ".join(f"{text} ({counts[text]})" for text in most) or "nothing"


def is_brighter(row: dict[str, Any]) -> bool:
    """Whether a class was found to be brighter or darker, which a border makes it."""
    return bool({"brighter", "darker"} & set(row["others"]))


def ranking_row(sets: Sequence[list[Any]], audited: str, shown: str) -> str:
    """How an audit's score and its average accuracy rank models by their true worst group: the mean over sets."""
    score, average = (
        fmean(rank_correlation(own, audited, measure) for own in sets) for measure in ("score", "average")
    )
    return f"| {shown} | {score:.2f} | {average:.2f} |\n"


def write_report(store: Store, folder: Path) -> None:
    """Write AUDIT.md into `folder`, if there is something to show."""
    text = ""
    if done := ranked(store):
        text += _RANKING.format(models=len(done), methods="; ".join(METHODS), size=480)
        for name in SETS:
            text += ranking_row([done], name, SHOWN[name])
    if done := ranked(store, photographed()):
        methods = "; ".join(audit_photographs.METHODS)
        text += _PHOTOGRAPHS.format(models=len(done), methods=methods)
        text += ranking_row([done], "balanced", "balanced, all models")
        draws = [ranked(store, of_draw(draw)) for draw in audit_photographs.CORRELATIONS]
        text += ranking_row([own for own in draws if len(own) > 2], "balanced", "balanced, models of one draw")
    if rows := searched(store, searches(), len(SHORTCUTS)):
        text += _DISCOVERY.format(sets=f"{len(rows):,}") + "\n".join(discovery_table(rows)) + "\n"
        parts = [[row for row in rows if ("border" in row["planted"]) == planted] for planted in (True, False)]
        text += "\nThat classes are brighter or darker is found in "
        text += f"{rate(parts[0], is_brighter)}% of the sets with a border, "
        text += f"and in {rate(parts[1], is_brighter)}% of those without.\n"
        text += f"\nFound most often besides what was planted, in sets: {others(rows)}.\n"
        nothing = others([row for row in rows if not row["number"]])
        text += f"Where nothing was planted: {nothing}.\n"
    if text:
        write_text_atomically(folder / "AUDIT.md", _HEADER + text)
