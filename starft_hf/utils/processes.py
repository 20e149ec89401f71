"""Which process is which, and whether it still runs: numbers of processes are used again."""

import os
import signal
import threading
import time
from contextlib import suppress

import psutil


# How `end_with_launcher` learns which process launched this one.
_LAUNCHER = "STARFT_LAUNCHER"
_INTERVAL = 1.0


def this_process() -> tuple[int, float]:
    """The number of this process and the time it started, in seconds since 1970."""
    process = psutil.Process()
    return process.pid, process.create_time()


def is_running(number: int, started: float) -> bool:
    """Whether the process of this machine that `this_process` named has not ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(number)
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    return False


def launcher_variables() -> dict[str, str]:
    """The variables of the environment by which `end_with_launcher` knows this process."""
    number, started = this_process()
    return {_LAUNCHER: f"{number} {started!r}"}


def end_with_launcher() -> None:
    """Send this process SIGTERM, which lets it save a checkpoint, once its launcher or its parent has ended.

    A launcher that is killed cannot end the processes it has started. Without one, nothing is done.
    """
    if _LAUNCHER in os.environ:
        number, started = os.environ[_LAUNCHER].split()
        arguments = (int(number), float(started), os.getppid())
        threading.Thread(target=_watch, args=arguments, daemon=True).start()


def _watch(number: int, started: float, parent: int) -> None:
    while os.getppid() == parent and is_running(number, started):
        time.sleep(_INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)
