"""The demo from its settings to its files."""

import importlib.metadata
import importlib.util
import time
from pathlib import Path

from rich.console import Console

from starft_hf import RobustnessReport
from starft_hf.demo.experiment import Setting
from starft_hf.demo.results import as_markdown, as_rows, as_sentence, as_tables, setting_as_json
from starft_hf.demo.runner import run_demo
from starft_hf.utils.files import write_bytes_atomically, write_text_atomically


_PACKAGES = ("starft_hf", "torch", "transformers", "accelerate", "datasets")


def demo(setting: Setting, seeds: int, output: Path, console: Console, workers: int = 2) -> RobustnessReport:
    """Run the demo, show what came out and write it to `output`, a folder that is empty or does not exist.

    Args:
        setting: what the runs have in common.
        seeds: runs per method.
        output: where the report, table.md, plot.png and setting.json go.
        console: where everything is shown.
        workers: processes.

    Returns:
        The report of all runs.
    """
    has_extra = all(importlib.util.find_spec(name) is not None for name in ("matplotlib", "jinja2"))
    if not has_extra:
        console.print("Without the extra there will be no plot and no page: pip install 'starft_hf[report]'")
    console.print(
        f"Zero-shot, FLYP, kl and star on {seeds} seed{'s' * (seeds > 1)}, {setting.steps} steps each: "
        f"pool {setting.pool!r}, {setting.correlation:.0%} of the training images of a class on its home background."
    )
    start = time.monotonic()
    report = run_demo(setting, seeds, console, workers)
    seconds = time.monotonic() - start
    rows = as_rows(report.runs, setting.split)
    for table in as_tables(rows, setting, console.width):
        console.print(table)
    console.print(as_sentence(rows, setting))
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    write_text_atomically(output / "setting.json", setting_as_json(setting, versions, seconds))
    write_text_atomically(output / "table.md", as_markdown(rows, setting))
    if has_extra:
        from starft_hf.demo.plot import draw_plot

        write_bytes_atomically(output / "plot.png", draw_plot(rows, setting))
        report.save(output)
    else:
        write_text_atomically(output / "report.json", report.as_json())
    console.print(
        f"Written to {output}: {', '.join(sorted(path.name for path in output.iterdir()))} ({seconds:.0f} s)."
    )
    return report
