"""Runs of one program side by side, in worker processes of one thread each."""

import contextlib
import os
import pickle
import queue
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")

# In a worker: where it puts the index of an item that has got further.
_PROGRESS: Any = None


def map_in_processes(
    task: Callable[[Item, Callable[[], None]], Result],
    items: Sequence[Item],
    processes: int,
    on_progress: Callable[[Item], None],
) -> list[Result]:
    """What `task` makes of every item, in their order.

    Args:
        task: a function of an item and of one that it calls whenever it has got further. It is called in a worker, to
            which it and the items are pickled, and must be one that a module has.
        items: what there is to do.
        processes: workers.
        on_progress: called here, with the item, whenever a task has got further.

    Raises:
        ValueError: if the first item or the task cannot be pickled, before a worker is started.
        Exception: what the first failing task raised; tasks that have not begun are given up then.
    """
    _check_pickled(task, *items[:1])
    context = get_context("spawn")
    progress = context.Queue()
    with (
        _one_thread_per_process(),
        ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(progress,)) as pool,
    ):
        futures = [pool.submit(_run, task, index, item) for index, item in enumerate(items)]
        try:
            _follow(futures, progress, lambda index: on_progress(items[index]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _check_pickled(*values: Any) -> None:
    try:
        ForkingPickler.dumps(values)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"what worker processes need cannot be sent to them ({error}); pass functions that a module has in place "
            "of lambdas and inner ones, and a model without hooks or by its path, or use processes=1"
        ) from error


def _run(task: Callable[..., Result], index: int, item: Any) -> Result:
    return task(item, lambda: _PROGRESS.put(index))


def _start_worker(progress: Any) -> None:
    global _PROGRESS
    _PROGRESS = progress
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    # Data loaders pin memory where there is a GPU, and say so where there is none.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _follow(futures: Sequence[Future[Any]], progress: Any, on_progress: Callable[[int], None]) -> None:
    """Tell of progress as it is made until every future is done; raise what the first failing one raised."""
    waiting = list(futures)
    while waiting:
        with contextlib.suppress(queue.Empty):
            while True:
                on_progress(progress.get(timeout=0.1))
        for future in [future for future in waiting if future.done()]:
            future.result()
            waiting.remove(future)


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
