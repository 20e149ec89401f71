"""What averages of checkpoints need of memory, measured in a process of its own."""

import subprocess
import sys

import pytest
import torch

from tests.support.tiny import folder_of


MEMORY = """
import sys
from pathlib import Path
from starft_hf import greedy_soup, interpolate_checkpoints, uniform_soup

folder = Path(sys.argv[1])

def memory(line):
    return int(next(row for row in open("/proc/self/status") if row.startswith(line)).split()[1]) * 1024

def make(size, shard):
    runs = sorted(folder.glob(f"{size}-*"))
    uniform_soup(runs, folder / f"uniform {size} {shard}", max_shard_size=shard)
    interpolate_checkpoints(*runs[:2], 0.3, folder / f"mixed {size} {shard}", max_shard_size=shard)
    greedy_soup(runs[:2], folder / f"greedy {size} {shard}", lambda folder: 0.5, max_shard_size=shard)

make("small", 2**20)
for shard in map(int, sys.argv[2:]):
    before = memory("VmRSS:")
    make("big", shard)
    print(memory("VmHWM:") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of resident memory from /proc")
@pytest.mark.slow
def test_memory_stays_near_one_file_of_the_output_however_many_models(tmp_path):
    """Five models of 64 MiB, in tensors of 4 MiB: the peak of resident memory, mapped files included."""
    size = 64 * 2**20
    for number in range(5):
        folder_of(tmp_path / f"small-{number}", {"0": torch.full((64,), float(number))})
        tensors = {str(place): torch.full((2**20,), float(number + place)) for place in range(16)}
        folder_of(tmp_path / f"big-{number}", tensors)
    # Shards first, since the peak never goes down.
    shards = [str(size // 8), str(2 * size)]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), *shards], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    sharded, whole = map(int, done.stdout.split())
    assert sharded < 0.75 * size
    assert whole < 1.5 * size
