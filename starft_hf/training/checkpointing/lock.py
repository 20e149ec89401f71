"""One run at a time in an output folder.

A requeued job, or a process that outlived its parent, would write checkpoints of the same names into it, and remove
those that the other one is about to resume from.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers.utils import logging

from starft_hf.training.checkpointing.files import CheckpointError
from starft_hf.utils.files import write_text_atomically
from starft_hf.utils.processes import is_running, this_process
from starft_hf.utils.untrusted import read_json_object


logger = logging.get_logger(__name__)

LOCK_FILE = ".starft_lock.json"

# Seconds. File systems of networks may show a file as it was up to a minute ago, unless it is opened anew.
HEARTBEAT = 10.0
PATIENCE = 35.0


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder.

    The lock of a process that has ended is taken over: at once on the same machine, and otherwise once its holder has
    not renewed it for a while.

    Raises:
        CheckpointError: if another run is writing into the folder.
    """
    own = _own()
    path = folder / LOCK_FILE
    _take(path, own)
    stop = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, own, stop), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        stop.set()
        renewing.join()
        if _holder(path) == own:
            path.unlink(missing_ok=True)


def _own() -> dict[str, Any]:
    number, started = this_process()
    return {"host": socket.gethostname(), "process": number, "started": started}


def _take(path: Path, own: dict[str, Any]) -> None:
    found = _read(path)
    if found is not None and _is_alive(path, found):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["started"]))
        raise CheckpointError(
            f"{str(path.parent)!r} is used by another run: process {found['process']} on {found['host']}, started "
            f"{since}. Two runs would overwrite each other's checkpoints; end that one, or choose another output_dir"
        )
    if found is not None:
        logger.warning(
            "The run that used %s (process %s on %s) has ended without releasing it; this run takes over.",
            path.parent,
            found["process"],
            found["host"],
        )
    _write(path, own)
    # Of several that take over at the same time, the last one has it.
    if found is not None:
        time.sleep(0.2)
    if _holder(path) != own:
        raise CheckpointError(f"{str(path.parent)!r} was taken by another run at the same time; choose another")


def _is_alive(path: Path, found: dict[str, Any]) -> bool:
    if found["host"] == socket.gethostname():
        return is_running(found["process"], found["started"])
    logger.warning(
        "%s was used by process %s on %s; waiting %.0f seconds to see whether it still is.",
        path.parent,
        found["process"],
        found["host"],
        PATIENCE,
    )
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1.0, PATIENCE / 10))
        now = _read(path)
        if now is None:
            return False
        if now != found:
            return True
    return False


def _renew(path: Path, own: dict[str, Any], stop: threading.Event) -> None:
    beats = 0
    while not stop.wait(HEARTBEAT):
        beats += 1
        # A full disk must not end a run, and a lock that another run has taken over is its own.
        with suppress(OSError):
            if _holder(path) == own:
                _write(path, own, beats)


def _write(path: Path, own: dict[str, Any], beats: int = 0) -> None:
    write_text_atomically(path, json.dumps({**own, "beats": beats}) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    """What a lock says, or None if there is none; one that cannot be read is nobody's."""
    try:
        return read_json_object(path, {"host": str, "process": int, "started": (int, float)})
    except (OSError, ValueError):
        return None


def _holder(path: Path) -> dict[str, Any] | None:
    found = _read(path)
    return None if found is None else {name: found[name] for name in ("host", "process", "started")}
