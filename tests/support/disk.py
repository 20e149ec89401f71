"""File systems of a test's own, and the order in which its subject writes to the disk."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def mounted(folder, device, options, *more):
    """A file system at `folder`, where mounting is allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", *more, "-o", options, str(device), str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"may not mount {device}")
    try:
        yield folder
    finally:
        # Features of the reference may still be mapped into memory.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def recorded(monkeypatch):
    """The calls that change what is on the disk, with the names of what they were called on."""
    calls = []

    def record(name, names_of):
        call = getattr(os, name)

        def recording(*arguments, **named):
            calls.append((name, *names_of(*arguments, **named)))
            return call(*arguments, **named)

        monkeypatch.setattr(os, name, recording)

    def last(path):
        return os.path.basename(path)

    record("fsync", lambda descriptor: [last(os.readlink(f"/proc/self/fd/{descriptor}"))])
    record("replace", lambda source, path: [last(source), last(path)])
    record("rename", lambda source, path: [last(source), last(path)])
    record("unlink", lambda path, **where: [last(path)])
    return calls
