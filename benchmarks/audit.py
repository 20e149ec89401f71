"""How far an audit can be trusted: `python -m benchmarks.audit`.

Ranking: fine-tunes on the demo's world at several correlations, without a regularizer (FLYP), with kl and with star at
several weights, and repairs the first. Every model is audited, without group labels, on a balanced set and on ones
that are drawn as the training sets are, and compared with its worst group on a balanced test set that the audits do
not see.

Photographs: the same with photographed objects on photographs, which packages of Debian are fetched for.

Discovery: plants up to three of a background that words name, a border and a tint in training sets, and counts what an
audit finds that labels are correlated with, without a pool: by a vocabulary and by properties of images. The labels
are shuffled as well: whatever is found then is false. No model is trained.

What is finished stands in audit.json and is not run again. At the end AUDIT.md is written.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.audit_photographs import photographed, run_photographed
from benchmarks.grid_runner import GridCell, Store, add_options, limits_of, run_all
from benchmarks.shortcuts import PLACES, make_dataset, training_rows
from starft_hf import StarFTTrainer, audit, evaluate_zero_shot, load, repair
from starft_hf.data.columns import ColumnSettings
from starft_hf.demo.experiment import Setting, run_settings
from starft_hf.demo.pretrain import MODEL_FOLDER
from starft_hf.demo.world import (
    BACKGROUND_PHRASES,
    BACKGROUND_TEMPLATES,
    COLORS,
    TRAINED_CLASSES,
    UNRELATED_PHRASES,
    make_split,
)
from starft_hf.evaluation import EvaluationResult
from starft_hf.spuriosity.correlates import LABELS, Correlate, CorrelateSettings, find_correlates
from starft_hf.weights.audit.audited import Audited
from starft_hf.weights.repair.embedding import ImageReading
from starft_hf.weights.repair.labeled import LabeledImages


RESULTS = Path(__file__).parent / "audit.json"
# Of cached embeddings.
WORK = Path(tempfile.gettempdir()) / "starft-audit"

# By seed; those below 10 are what the score was defined on.
CORRELATIONS = {10: 0.95, 11: 0.95, 12: 0.8, 13: 0.95, 14: 0.5}
REPAIRED = "FLYP, repaired"
METHODS = {"FLYP": None, REPAIRED: None, "kl@3": 3, "kl@30": 30, "star@10": 10, "star@100": 100}
SHOWN = {"balanced": "balanced", "0.95": "classes at home on one background in 95%", "0.8": "in 80%"}
SETS = tuple(SHOWN)
# Of the images that are audited, and of those that the true worst group is measured on.
AUDITED, SCORED = 3000, 3001
SIZE = 480

PARTS = ("ranking", "photographs", "discovery")
DRAWS = 200
STRENGTHS = (0.95, 0.8)
SHORTCUTS = ("background", "border", "tint")
_SHORT = ("the", "a", "on", "in", "of", "to", "by", "my", "for", "with", "from", "an", "last", "taken", "front")
VOCABULARY = sorted(
    {
        word
        for phrase in (*itertools.chain(*BACKGROUND_PHRASES.values()), *UNRELATED_PHRASES, *COLORS)
        for word in phrase.split()
    }
    - set(_SHORT)
)
# What names a shortcut.
NAMING = {
    "background": {word for place in PLACES for phrase in BACKGROUND_PHRASES[place] for word in phrase.split()},
    "border": {"border"},
    "tint": {"warmth"},
}


@dataclass(frozen=True)
class Cell(GridCell):
    """A fine-tuned model."""

    method: str
    seed: int
    correlation: float


@dataclass(frozen=True)
class Search(GridCell):
    """A training set in which shortcuts are planted; `draw` is its number, and that of what is planted."""

    part: str
    planted: int
    strength: float
    draw: int

    @property
    def names(self) -> tuple[str, ...]:
        """What is planted: every subset of that size, in turn."""
        subsets = list(itertools.combinations(SHORTCUTS, self.planted))
        return subsets[self.draw % len(subsets)]


def cells(seeds: int = len(CORRELATIONS)) -> list[Cell]:
    """All models of the first seeds, in the order they are run."""
    return [Cell(method, seed, CORRELATIONS[seed]) for seed in list(CORRELATIONS)[:seeds] for method in METHODS]


def searches(draws: int = DRAWS) -> Iterator[Search]:
    """All training sets that are searched, such that few from the beginning have all conditions."""
    for number in range(draws):
        yield Search("discovery", 0, 0.5, number)
        for planted in range(1, 1 + len(SHORTCUTS)):
            for strength in STRENGTHS:
                yield Search("discovery", planted, strength, number)


def run_search(search: Search, work: Path) -> dict[str, Any]:
    """The planted shortcuts that are named, what else is found, and what is found with shuffled labels."""
    rng = np.random.default_rng((33, search.planted, round(100 * search.strength), search.draw))
    dataset = make_dataset(rng, training_rows(rng, search.names, search.strength))
    reading = ImageReading(batch_size=256, cache_dir=work / "features", progress=False)
    described: dict[str, Any] = {"templates": None, "spuriosity": None, "trust_remote_code": False}
    images = LabeledImages.of(MODEL_FOLDER, dataset, ColumnSettings(), reading, **described)
    audited = Audited(images.load(None, None), images)
    looked, settings = audited.looked(VOCABULARY), CorrelateSettings(seed=search.draw)
    # No answer is wrong, so that mistakes are not searched.
    right, names = np.zeros(len(audited.labels), dtype=bool), audited.subject.class_names

    def found(labels: Any) -> tuple[Correlate, ...]:
        return find_correlates(looked, labels, right, names, settings).found

    named, others = set(), set()
    for row in found(audited.labels):
        shortcuts = [name for name in search.names if NAMING[name] & {row.name, *row.alike}]
        named |= set(shortcuts)
        others |= set() if shortcuts else {row.text}
    shuffled = {str(row) for row in found(rng.permutation(audited.labels)) if row.of == LABELS}
    return {
        "planted": list(search.names),
        "named": sorted(named),
        "others": sorted(others),
        "shuffled": sorted(shuffled),
    }


def run_cell(cell: Cell, work: Path) -> dict[str, Any]:
    """The true worst group and average of a model, and what audits of it say."""
    folder, weight = work / f"{cell.method}-{cell.seed}", METHODS[cell.method]
    name = cell.method.partition("@")[0]
    args = run_settings(
        Setting(),
        str(folder),
        regularizer=name if weight is not None else "none",
        reg_weight=weight or 0,
        reference_cache_dir=str(work / "features"),
        seed=cell.seed,
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
    )
    pool = list(BACKGROUND_TEMPLATES)
    train = make_split("train", seed=cell.seed, correlation=cell.correlation)
    trainer = StarFTTrainer(str(MODEL_FOLDER), args, train, spuriosity=pool)
    trainer.train()
    trainer.save_model()
    shared: dict[str, Any] = {"spuriosity": pool, "cache_dir": work / "features", "progress": False}
    if cell.method == REPAIRED:
        validation = make_split("validation", seed=cell.seed)
        output = Path(f"{folder} repaired")
        repair(folder, None, validation, group_column="group", base=MODEL_FOLDER, output_dir=output, **shared)
        folder = output
    model = load(folder)
    true = evaluate_zero_shot(
        model.model,
        model.processor,
        make_split("test", seed=SCORED),
        class_names=TRAINED_CLASSES,
        group_column="group",
        head=model.head,
        batch_size=256,
        progress=False,
    )
    assert isinstance(true, EvaluationResult)
    found: dict[str, Any] = {"worst_group": true.worst_group_accuracy, "average": true.accuracy}
    for audited in SETS:
        if audited == "balanced":
            rows = make_split("test", seed=AUDITED, size=SIZE)
        else:
            rows = make_split("train", seed=AUDITED, size=SIZE, correlation=float(audited))
        result = audit(folder, MODEL_FOLDER, rows.remove_columns("group"), vocabulary=None, **shared)
        found[audited] = {"score": result.score, "average": result.average.after.accuracy}
    return found


def ranked(store: Store, models: Iterable[GridCell] | None = None) -> list[Any]:
    """What is stored of the models; None: those of the demo's world."""
    return [store[cell] for cell in (cells() if models is None else models) if cell in store]


def rank_correlation(done: Sequence[Any], audited: str, measure: str) -> float:
    """That of a measure of an audit with the true worst group, over finished models."""
    return float(spearmanr([own["worst_group"] for own in done], [own[audited][measure] for own in done]).statistic)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are asked for, and write what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, default=len(CORRELATIONS), help="of the models that are ranked")
    parser.add_argument("--draws", type=int, default=DRAWS, help="training sets of every kind that are searched")
    parser.add_argument("--work", type=Path, default=WORK, help="for models and cached embeddings")
    add_options(parser, RESULTS)
    options = parser.parse_args(arguments)
    store = Store(options.results)
    parts = () if options.report else options.only
    if "ranking" in parts:
        run = partial(run_cell, work=options.work)
        run_all(cells(options.seeds), run, store, what="ranking", **limits_of(options))
    if "photographs" in parts:
        run_all(
            photographed(),
            partial(run_photographed, work=options.work),
            store,
            what="photographs",
            **limits_of(options),
        )
    if "discovery" in parts:
        run_all(
            searches(options.draws),
            partial(run_search, work=options.work),
            store,
            what="discovery",
            **limits_of(options),
        )
    from benchmarks.audit_report import write_report

    write_report(store, options.results.parent)


if __name__ == "__main__":
    main()
