"""Signals of processes that load data."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def spare_worker() -> None:
    """In a process that loads data, ignore SIGTERM unless the main process sends it.

    If a process group or a job is terminated, a run whose workers end first could not save a checkpoint. In other
    processes, and on systems that do not report the sender of a signal, this does nothing.
    """
    if torch.utils.data.get_worker_info() is None or not hasattr(signal, "sigwaitinfo"):
        return
    if signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}):
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (os.getppid() if parent is None else parent.pid):
        pass
    os._exit(0)


@contextmanager
def explained_worker_deaths() -> Iterator[None]:
    """Replace torch's error if a process that loads data has died by one that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"a process that loads data died ({' '.join(str(error).split())}); usually it ran out of memory or of "
            "shared memory (/dev/shm), or a library crashed in it. Lower dataloader_num_workers, or set it to 0 to "
            "see the error, and continue with resume_from_checkpoint=True"
        ) from error
