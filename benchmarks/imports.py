"""What it takes to start: seconds from a fresh interpreter to a finished import, the fastest of several.

`python -m benchmarks.imports`
"""

import subprocess
import sys
import time


STATEMENTS = (
    "pass",
    "import starft_hf",
    "import torch",
    "import torch, starft_hf",
    "from transformers import Trainer",
    "from starft_hf import StarFTTrainer",
)
REPEATS = 7


def seconds(statement: str) -> float:
    """Of the whole process, start and end of the interpreter included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    print("| Statement | Seconds |\n| --- | ---: |")
    for statement in STATEMENTS:
        seconds(statement)  # reads the files into memory, and writes the bytecode
        print(f"| `{statement}` | {min(seconds(statement) for _ in range(REPEATS)):.2f} |")


if __name__ == "__main__":
    main()
