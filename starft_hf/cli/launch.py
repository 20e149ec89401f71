"""Starting a command again in several processes."""

import os
import subprocess
import sys
from collections.abc import Sequence


def launched() -> bool:
    """Whether this is one of the processes that accelerate or torchrun has started."""
    return "LOCAL_RANK" in os.environ


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run a `starft` command line through `accelerate launch` on this machine; returns the exit code."""
    from starft_hf.accelerate_configs import config_file

    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config_file("ddp"))]
    # The precision is that of the command's own settings.
    sizes = ["--num_processes", str(processes), "--mixed_precision", "no"]
    return subprocess.run([*launcher, *sizes, "-m", "starft_hf", *arguments], check=False).returncode
