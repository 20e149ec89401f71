"""The order in which a test's subject writes to the disk."""

import os


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
