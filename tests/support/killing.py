"""Kills runs and starts them again, from a process that has imported everything: `killing.py FOLDER [COUNT SEED]`.

Without a count at the fixed moments, with it at that many random ones. Prints what came out as JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from tests.support.resumed_run import MOMENTS, in_child, outcome


def wait(child):
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stage_of(folder):
    """What a killed run has left."""
    marks = list(folder.glob("output/checkpoint-*/checkpoint-is-incomplete.txt"))
    checkpoints = sorted(path.name for path in folder.glob("output/checkpoint-*"))
    return {
        "half written": [mark.parent.name for mark in marks],
        "checkpoints": checkpoints,
        "cached": sorted(path.name.partition("-")[0] for path in folder.glob("features/*.safetensors")),
    }


def _first(target, moment):
    """Start a run and kill it; returns its exit code."""
    if isinstance(moment, str):
        return wait(in_child(target, None, moment))
    child = in_child(target)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return wait(child)


def main(folder, count=None, seed=0):
    torch.set_num_threads(1)
    folder, results = Path(folder), []
    whole = folder / "whole"
    started = time.monotonic()
    assert wait(in_child(whole)) == 0, whole.with_suffix(".log").read_text()[-3000:]
    duration = time.monotonic() - started
    expected = outcome(whole)
    generator = random.Random(seed)
    # Up to a multiple, because a busy machine takes longer; those that have ended by then are killed earlier.
    moments = list(MOMENTS) if count is None else [generator.uniform(0, 3 * duration) for _ in range(count)]
    for number, moment in enumerate(moments):
        target = folder / f"run-{number}"
        first = _first(target, moment)
        while first == 0:
            # It was quicker than the one that was measured.
            shutil.rmtree(target)
            moment *= generator.random()
            first = _first(target, moment)
        left = stage_of(target)
        second = wait(in_child(target))
        log = target.with_suffix(".log").read_text()
        found = outcome(target) if second == 0 else None
        results.append(
            {
                "moment": moment,
                "first": first,
                "second": second,
                "left": left,
                "same": found == expected,
                "skipped": log.count("is skipped"),
                "log": log[-2000:] if found != expected else "",
            }
        )
    print(json.dumps({"duration": duration, "results": results}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
