"""Runs the demo's fine-tunings with a live display."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from starft_hf import RobustnessReport
from starft_hf.demo.experiment import METHODS, Setting, run_experiment


def run_demo(setting: Setting, seeds: int, console: Console, processes: int = 2) -> RobustnessReport:
    """The demo's comparison, with its progress on `console`."""
    with _display(console, setting, seeds) as advance:
        return run_experiment(setting, seeds, processes, advance)


@contextlib.contextmanager
def _display(console: Console, setting: Setting, seeds: int) -> Iterator[Callable[[str], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {
            method: progress.add_task(f"Fine-tuning with {method}", total=setting.steps * seeds) for method in METHODS
        }
        yield lambda method: progress.advance(tasks[method])
