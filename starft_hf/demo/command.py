"""The demo from its settings to its files."""

import json
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from starft_hf import RobustnessReport
from starft_hf.demo.experiment import Setting, run_experiment
from starft_hf.demo.plot import draw_plot
from starft_hf.demo.results import as_markdown, as_sentence, as_tables
from starft_hf.report.page import check_extra
from starft_hf.utils.files import write_bytes_atomically, write_text_atomically
from starft_hf.utils.text import without_paths
from starft_hf.utils.versions import versions_of


_PACKAGES = ("starft_hf", "torch", "transformers", "accelerate", "datasets")


def demo(setting: Setting, seeds: int, output: Path, console: Console, workers: int = 2) -> RobustnessReport:
    """Run the demo with some seeds per method in `workers` processes.

    The report, table.md, plot.png (plot_dark.png for dark pages) and setting.json go to `output`, an empty or new
    folder.
    """
    check_extra()
    console.print(
        f"Zero-shot, FLYP, kl and star on {seeds} seed{'s' * (seeds > 1)}, {setting.steps} steps each: "
        f"pool {setting.pool!r}, {setting.correlation:.0%} of the training images of a class on its home background."
    )
    start = time.monotonic()
    report = run_experiment(setting, seeds, workers)
    seconds = time.monotonic() - start
    for table in as_tables(report, setting, console.width):
        console.print(table)
    console.print(as_sentence(report, setting))
    content = {
        "setting": {
            **asdict(setting),
            "model": "shipped" if setting.model == Setting().model else without_paths(setting.model),
        },
        "versions": versions_of(_PACKAGES),
        "seconds": round(seconds, 1),
    }
    write_text_atomically(output / "setting.json", json.dumps(content, indent=1) + "\n")
    write_text_atomically(output / "table.md", as_markdown(report, setting))
    for name, dark in (("plot.png", False), ("plot_dark.png", True)):
        write_bytes_atomically(output / name, draw_plot(report, setting, dark))
    report.save(output)
    names = ", ".join(sorted(path.name for path in output.iterdir()))
    console.print(f"Written to {output}: {names} ({seconds:.0f} s).")
    return report
