"""Starts processes as users do, by torchrun."""

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[2]


def torchrun(processes, *arguments, timeout=300, **environment):
    """Run `python -m torch.distributed.run --nproc_per_node PROCESSES ...`; returns the finished process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=settings,
        cwd=ROOT,
        check=False,
    )
