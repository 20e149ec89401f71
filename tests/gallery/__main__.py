"""`python -m tests.gallery FOLDER [SHEET ...]`."""

import shutil
import sys
import time
from pathlib import Path

from tests.gallery.sheets import SHEETS
from tests.support.browser import open_browser


def main(folder, *chosen):
    """Draw all sheets, or those that were chosen, each into a folder of its own."""
    if unknown := set(chosen) - set(SHEETS):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; sheets: {', '.join(SHEETS)}")
    with open_browser() as browser:
        for name in chosen or SHEETS:
            start = time.monotonic()
            shutil.rmtree(Path(folder) / name, ignore_errors=True)
            (Path(folder) / name).mkdir(parents=True)
            SHEETS[name](Path(folder) / name, browser)
            count = len(list((Path(folder) / name).iterdir()))
            print(f"{name}: {count} images in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
