"""Kills runs and starts them again, from a process that has imported everything: `killing.py FOLDER [COUNT SEED]`.

Without a count one run at every fixed moment; with it so many runs, of mixed settings, each killed or terminated once
or several times in a row, at fixed or random moments. Prints what came out as JSON.
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

from starft_hf.training.checkpointing.interruption import INTERRUPTED
from starft_hf.training.checkpointing.lock import LOCK_FILE
from tests.support.resumed_run import MOMENTS, in_child, outcome


SETTINGS = {"per_device_eval_batch_size": 4, "eval_on_start": True}

# Every mix has one of each row.
ROWS = [
    [{}, {"peft_config": "lora"}],
    [{}, {"base_loss": "cross_entropy"}],
    [{"regularizer": name} for name in ("star", "kl", "conditional", "none")],
    [
        {},
        {"mini_batch_size": 3},
        {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "mini_batch_size": 2},
    ],
    [{"reference_cache": "full"}, {"reference_cache": "text", "crop_scale": (0.5, 1.0)}, {"reference_cache": "none"}],
    [{}, {"dataloader_num_workers": 1}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}],
    [{}, {}, {"iterable": True, "shuffle_buffer_size": 6}],
    [
        {"save_total_limit": 1},
        {"save_total_limit": 2},
        {"save_total_limit": 1, "load_best_model_at_end": True},
        {"save_total_limit": 2, "load_best_model_at_end": True},
    ],
    [{"eval_on_start": True}, {"eval_on_start": False}],
    [{}, {"average": False}],
    [{}, {"logging_steps": 2}],
]
MIXES = 12


def make_mixes(generator):
    """Settings in which each option of a row is as frequent as the others."""
    mixes = [{"max_steps": 9, "per_device_eval_batch_size": 4} for _ in range(MIXES)]
    for row in ROWS:
        options = [row[number % len(row)] for number in range(MIXES)]
        generator.shuffle(options)
        for mix, option in zip(mixes, options, strict=True):
            mix.update(option)
    for mix in mixes:
        if "iterable" in mix and mix["reference_cache"] == "full":
            mix["reference_cache"] = "text"
    return mixes


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


def outcome_with_files(folder):
    """The outcome of a run, and the names of all files it has left but temporary ones of its lock, which are small."""
    paths = (path for path in folder.rglob("*") if LOCK_FILE not in path.name)
    names = sorted(str(path.relative_to(folder)) for path in paths)
    return {**outcome(folder), "files": names}


def whole(folder, settings):
    """The outcome of the uninterrupted run, and how long it took."""
    started = time.monotonic()
    assert wait(in_child(folder, settings)) == 0, folder.with_suffix(".log").read_text()[-3000:]
    return outcome_with_files(folder), time.monotonic() - started


def ended(target, settings, expected):
    """How the run comes out that is started once more: its exit code, and what differs from the expected outcome."""
    code = wait(in_child(target, settings))
    found = outcome_with_files(target) if code == 0 else {}
    different = [name for name in expected if found.get(name) != expected[name]]
    log = target.with_suffix(".log").read_text()
    details = {name: [expected[name], found.get(name)] for name in different}
    return {
        "code": code,
        "different": different,
        "details": details,
        "log": log[-3000:] if different else "",
        "skipped": log.count("is skipped"),
    }


def at_fixed_moments(folder):
    expected, _ = whole(folder / "whole", SETTINGS)
    for moment in MOMENTS:
        target = folder / moment.replace(" ", "-")
        first = wait(in_child(target, SETTINGS, moment))
        yield {"moment": moment, "first": first, "left": stage_of(target), **ended(target, SETTINGS, expected)}


def interrupted(target, settings, generator, duration):
    """Start a run and kill or terminate it; returns when, by what, and its exit code."""
    number = generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    if generator.random() < 0.4:
        moment = generator.choice(list(MOMENTS))
        return moment, number, wait(in_child(target, settings, moment, number))
    # Not before it listens for signals.
    moment = generator.uniform(0.3, 1.2 * duration)
    child = in_child(target, settings)
    time.sleep(moment)
    os.kill(child, number)
    return moment, number, wait(child)


def at_mixed_moments(folder, count, seed):
    generator = random.Random(seed)
    mixes = [(mix, *whole(folder / f"whole-{number}", mix)) for number, mix in enumerate(make_mixes(generator))]
    for number in range(count):
        settings, expected, duration = mixes[number % MIXES]
        target = folder / f"run-{number}"
        times, stops = generator.choice([1, 1, 2, 3]), []
        while len(stops) < times:
            moment, sent, code = interrupted(target, settings, generator, duration)
            if code == 0 and not stops:
                # It ended before the signal, or without coming to the moment.
                shutil.rmtree(target)
            elif code == 0:
                break
            else:
                stops.append([moment, sent, code])
        proper = all(code == (INTERRUPTED if sent == signal.SIGTERM else -sent) for _, sent, code in stops)
        result = {"settings": settings, "stops": stops, "left": stage_of(target), **ended(target, settings, expected)}
        print(number, stops, result["different"] or "same", file=sys.stderr, flush=True)
        yield {**result, "same": proper and not result["different"]}


def main(folder, count=None, seed=0):
    torch.set_num_threads(1)
    results = at_fixed_moments(Path(folder)) if count is None else at_mixed_moments(Path(folder), count, seed)
    print(json.dumps(list(results)))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
