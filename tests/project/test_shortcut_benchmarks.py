"""The benchmarks of many classes and of several shortcuts: their worlds, and that their pages show the stored runs."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import (
    audit,
    audit_report,
    fine_world,
    shortcuts,
    shortcuts_report,
    zero_shot_shift,
    zero_shot_shift_report,
)
from benchmarks.grid_runner import Store
from starft_hf.demo.pretrain import pretrain
from starft_hf.models.encoder import DualEncoder


FOLDER = Path(shortcuts.__file__).parent
PAGES = {
    "ZERO_SHOT_SHIFT.md": (zero_shot_shift, zero_shot_shift_report),
    "SHORTCUTS.md": (shortcuts, shortcuts_report),
    "AUDIT.md": (audit, audit_report),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_that_of_the_stored_runs(name, tmp_path):
    """There is one as soon as a part of the runs is complete."""
    benchmark, report = PAGES[name]
    report.write_report(Store(benchmark.RESULTS), tmp_path)
    written, stored = (
        [file.read_text(encoding="utf-8") for file in folder.glob(name)] for folder in (tmp_path, FOLDER)
    )
    assert written == stored


def test_the_classes_of_the_fine_world_have_two_homes_and_names_that_the_model_reads():
    model, processor = pretrain(
        0, 1, 2, progress=False, draw_captioned=fine_world.draw_captioned, processor=fine_world.make_processor()
    )
    encoder = DualEncoder.of(model, processor)
    assert all(encoder.encode_texts.knows(name) for name in (*fine_world.FINE, *fine_world.KINDS))
    train = fine_world.train_split(0.95, 0)
    names = train.features["label"].names
    assert len(names) == 60
    assert set(Counter(train["label"]).values()) == {fine_world.PER_CLASS}
    homes = {f"{kind} on {place}" for kind, place in fine_world.HOMES.items()}
    shapes = [names[label].split()[1] for label in train["label"]]
    at_home = Counter(shape for shape, group in zip(shapes, train["group"], strict=True) if group in homes)
    assert at_home == dict.fromkeys(fine_world.TRAINED, 95)
    assert not set(fine_world.HELD_OUT) & {name.split()[1] for name in names}


def test_shortcuts_are_planted_in_exact_fractions_and_do_not_predict_each_other():
    halves = {name: [half(index) for index in range(8)] for name, half in shortcuts.HALVES.items()}
    for first, second in itertools.combinations(halves.values(), 2):
        assert Counter(zip(first, second, strict=True)) == dict.fromkeys(itertools.product((0, 1), repeat=2), 2)
    rows = shortcuts.training_rows(np.random.default_rng(0), ("border",), 0.95)
    shown = Counter((index, name) for index, own in rows for name, is_shown in own.items() if is_shown)
    for index in range(8):
        assert shown[index, "border"] == (57 if halves["border"][index] else 3)
        assert all(shown[index, name] == 30 for name in halves if name != "border")


def test_every_shortcut_changes_an_image():
    plain = dict.fromkeys(shortcuts.SHORTCUTS, False)

    def pixels(**shown):
        return np.asarray(shortcuts.draw(np.random.default_rng(0), "star", {**plain, **shown})).tobytes()

    assert len({pixels(), *(pixels(**{name: True}) for name in plain)}) == 1 + len(plain)
