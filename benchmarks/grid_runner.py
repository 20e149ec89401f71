"""Grids of runs that can be broken off at any time: their cells, what is kept of them, and the loop that runs them."""

import argparse
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from filelock import FileLock
from tqdm import tqdm

from benchmarks.processes import KEEPS_MEMORY
from starft_hf.utils.files import folder_in_place_of, write_text_atomically
from starft_hf.utils.hashing import digest


@dataclass(frozen=True)
class GridCell:
    """A run of a grid, a frozen dataclass of strings, numbers and None."""

    @property
    def key(self) -> str:
        """Under which its result is kept."""
        return " | ".join(str(value) for value in asdict(self).values())


CellT = TypeVar("CellT", bound=GridCell)


class Store:
    """Finished cells in one JSON file, which several processes may add to."""

    def __init__(self, path: Path):
        self.path = path
        self.cells: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        self.cells = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def add(self, cell: GridCell, result: dict[str, Any]) -> None:
        """Keep the result of a cell, beside what others have kept."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_of(self.path)):
            self._read()
            self.cells[cell.key] = result
            lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(self.cells[key])}" for key in sorted(self.cells))
            write_text_atomically(self.path, f"{{\n{lines}\n}}\n")

    def __contains__(self, cell: GridCell) -> bool:
        return cell.key in self.cells

    def __getitem__(self, cell: GridCell) -> Any:
        return self.cells[cell.key]


def _lock_of(path: Path) -> Path:
    return Path(tempfile.gettempdir()) / f"{path.name}-{digest([str(path.absolute())])}.lock"


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills unless it is there, in the first of the processes that need it."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_lock_of(folder)):
            if not folder.is_dir():
                with folder_in_place_of(folder) as temporary:
                    make(temporary)
    return folder


def add_options(parser: argparse.ArgumentParser, results: Path, processes: int = 1) -> None:
    """Add the options that every grid has."""
    parser.add_argument("--match", default="", help="run only cells whose key has this regular expression")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument("--processes", type=int, default=processes, help="on one core each (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=results, help="where finished runs are kept")
    parser.add_argument("--report", action="store_true", help="run nothing, and write the page of what is there")


def limits_of(options: argparse.Namespace) -> dict[str, Any]:
    """Those of the options that `run_all` takes."""
    return {name: getattr(options, name) for name in ("match", "minutes", "processes")}


def run_all(
    cells: Iterable[CellT],
    run: Callable[[CellT], dict[str, Any]],
    store: Store,
    *,
    what: str,
    match: str = "",
    minutes: float = math.inf,
    processes: int = 1,
) -> None:
    """Run what is not in the store yet.

    Args:
        cells: in the order in which they are run.
        run: returns what is kept of a cell; it is pickled if there are several processes.
        store: keeps it.
        what: is run, for the progress bar.
        match: a regular expression that the keys of cells must have.
        minutes: after which no cell is started.
        processes: that run cells, on one core each; one is this process itself.
    """
    todo = [cell for cell in dict.fromkeys(cells) if cell not in store and re.search(match, cell.key)]
    if not todo:
        return
    waiting = iter(todo)
    end = time.monotonic() + 60 * minutes
    bar = tqdm(total=len(todo), desc=what, unit="run")
    if processes == 1:
        start_worker()
        while time.monotonic() < end and (cell := next(waiting, None)) is not None:
            store.add(cell, run(cell))
            bar.update()
        return
    one_core = {**KEEPS_MEMORY, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (
        patch.dict(os.environ, one_core),
        ProcessPoolExecutor(processes, get_context("spawn"), initializer=start_worker) as pool,
    ):
        running: dict[Future[dict[str, Any]], CellT] = {}
        while True:
            while len(running) < processes and time.monotonic() < end and (cell := next(waiting, None)) is not None:
                running[pool.submit(run, cell)] = cell
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                store.add(running.pop(future), future.result())
                bar.update()


def start_worker() -> None:
    """Make this process a quiet one on one core."""
    import datasets
    import transformers

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
