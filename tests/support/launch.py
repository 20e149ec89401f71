"""Starts processes as users do, by torchrun."""

import os
import subprocess
import sys
from pathlib import Path

from starft_hf.utils.collectives import destroy_process_group


ROOT = Path(__file__).parents[2]
THREADS = Path("/proc/self/task")


def torchrun(processes, *arguments, timeout=300, **environment):
    """Run `python -m torch.distributed.run --nproc_per_node PROCESSES ...`; returns the finished process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment}
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=settings,
        cwd=ROOT,
        check=False,
    )


def end_quietly(*, sharded=False):
    """End a script such that no thread of gloo can take the process down while the interpreter goes.

    FSDP 2 leaves the group in caches of torch, and with it the threads; the interpreter is skipped then.
    """
    destroy_process_group()
    if sharded:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    if THREADS.is_dir():
        names = [(thread / "comm").read_text().strip() for thread in THREADS.iterdir()]
        assert not [name for name in names if "gloo" in name], names
