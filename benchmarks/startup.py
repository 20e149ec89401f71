"""What it takes to start: seconds from a fresh interpreter to its end, the fastest of several.

`python -m benchmarks.startup`
"""

import subprocess
import sys
import time
from pathlib import Path


STATEMENTS = (
    "pass",
    "import starft_hf",
    "import torch",
    "import torch, starft_hf",
    "from transformers import Trainer",
    "from starft_hf import StarFTTrainer",
)
COMMANDS = ("--help", "--version", "report --help", "evaluate --help", "train --help")
REPEATS = 3
FILE = Path(__file__).parent / "STARTUP.md"


def seconds(*arguments: str) -> float:
    """Of the whole process, start and end of the interpreter included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def fastest(*arguments: str) -> float:
    """The first run reads the files into memory, and writes the bytecode."""
    seconds(*arguments)
    return min(seconds(*arguments) for _ in range(REPEATS))


def main() -> None:
    lines = [
        "# Start",
        "",
        f"By `python -m benchmarks.startup`: seconds of a whole process, the fastest of {REPEATS}, with Python "
        f"{sys.version.split()[0]}.",
        "",
        "| What is run | Seconds |",
        "| --- | ---: |",
    ]
    lines += [f"| `{statement}` | {fastest('-c', statement):.2f} |" for statement in STATEMENTS]
    lines += [f"| `starft {command}` | {fastest('-m', 'starft_hf', *command.split()):.2f} |" for command in COMMANDS]
    FILE.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
