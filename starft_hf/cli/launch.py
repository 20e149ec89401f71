"""Starting a command again in several processes."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType


# Names the file in which a process leaves its exit code for the one that launched it: launchers make all failures 1.
_CODE_FILE = "STARFT_EXIT_CODE_FILE"


def launched() -> bool:
    """Whether this is one of the processes that accelerate or torchrun has started."""
    return "LOCAL_RANK" in os.environ


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run a `starft` command line through `accelerate launch` on this machine; returns the exit code.

    SIGTERM is passed on, and the exit code is the one that `tell_launcher` was given, if any.
    """
    from starft_hf.cli.accelerate_configs import config_file
    from starft_hf.training.checkpointing.interruption import INTERRUPTED

    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config_file("ddp"))]
    # The precision is that of the command's own settings.
    sizes = ["--num_processes", str(processes), "--mixed_precision", "no"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "code"
        command = [*launcher, *sizes, "-m", "starft_hf", *arguments]
        process = subprocess.Popen(command, env={**os.environ, _CODE_FILE: str(file)})

        def pass_on(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        former = signal.signal(signal.SIGTERM, pass_on)
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, former)
        # The launcher itself, where it had not come as far as to start anything.
        code = INTERRUPTED if code == -signal.SIGTERM else code
        return int(file.read_text()) if file.exists() else code


def tell_launcher(code: int) -> None:
    """Leave an exit code for the process that has launched this one, if there is one."""
    if _CODE_FILE in os.environ:
        Path(os.environ[_CODE_FILE]).write_text(str(code))
