"""Runs the demo's fine-tunings side by side in worker processes, with a live display."""

import contextlib
import os
import queue
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from starft_hf.demo.experiment import METHODS, ZERO_SHOT, Score, Setting, run_method, run_zero_shot


_STEPS: Any = None


def run_demo(setting: Setting, seeds: int, console: Console, workers: int = 2) -> list[Score]:
    """Zero-shot, and every method over several seeds.

    Args:
        setting: what the runs have in common.
        seeds: runs per method.
        console: where progress is shown.
        workers: processes, of one thread each.

    Returns:
        The scores, in the order zero-shot, then method by method and seed by seed.
    """
    context = get_context("spawn")
    steps = context.Queue()
    with (
        _one_thread_per_process(),
        _display(console, setting, seeds) as advance,
        ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(steps,)) as pool,
    ):
        zero_shot = pool.submit(run_zero_shot, setting)
        # Seed by seed and the slowest method first, so that the workers finish at about the same time.
        runs = {
            (method, seed): pool.submit(_run_method, setting, method, seed)
            for seed in range(seeds)
            for method in reversed(METHODS)
        }
        try:
            _follow([zero_shot, *runs.values()], steps, advance)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        scores = zero_shot.result()
        for method in METHODS:
            for seed in range(seeds):
                scores += runs[method, seed].result()
        return scores


def _start_worker(steps: Any) -> None:
    global _STEPS
    _STEPS = steps
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    # The workers' data loaders pin memory where there is a GPU, and say so where there is none.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _run_method(setting: Setting, method: str, seed: int) -> list[Score]:
    return run_method(setting, method, seed, on_step=lambda: _STEPS.put(method))


def _follow(futures: list[Future[Any]], steps: Any, advance: Callable[[str], None]) -> None:
    """Show steps as they come until every future is done; raise what the first failing one raised."""
    waiting = list(futures)
    while waiting:
        with contextlib.suppress(queue.Empty):
            while True:
                advance(steps.get(timeout=0.1))
        for future in [future for future in waiting if future.done()]:
            future.result()
            waiting.remove(future)


@contextlib.contextmanager
def _display(console: Console, setting: Setting, seeds: int) -> Iterator[Callable[[str], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {
            method: progress.add_task(f"Fine-tuning with {method}", total=setting.steps * seeds) for method in METHODS
        }
        yield lambda method: progress.advance(tasks[method])


@contextlib.contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Start child processes with one OpenMP thread each: more of them than cores slow each other down."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


__all__ = ["METHODS", "ZERO_SHOT", "run_demo"]
