"""Runs tasks side by side, in worker processes of one thread each."""

import contextlib
import pickle
import queue
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")

# In a worker: the task, and the queue for the index of an item that has progressed.
_TASK: Any = None
_PROGRESS: Any = None


def map_in_processes(
    task: Callable[[Item, Callable[[], None]], Result],
    items: Sequence[Item],
    processes: int,
    on_progress: Callable[[Item], None],
    on_done: Callable[[], Any],
) -> list[Result]:
    """The results of `task` for every item, in order.

    A task is called in a worker with an item and a function to call after every step. Task and items are pickled, so
    the task must be defined in a module. `on_progress` is called here with the item after every step, and `on_done`
    after every task.

    Raises:
        ValueError: if the first item or the task cannot be pickled, before a worker is started.
        Exception: what the first failing task raised; tasks that have not started are canceled.
    """
    _check_pickled(task, *items[:1])
    context = get_context("spawn")
    progress = context.Queue()
    with ProcessPoolExecutor(processes, context, _start_worker, (task, progress)) as pool:
        futures = [pool.submit(_run, index, item) for index, item in enumerate(items)]
        waiting: set[Future[Any]] = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0)
                with contextlib.suppress(queue.Empty):
                    while True:
                        on_progress(items[progress.get(timeout=0.1)])
                for future in done:
                    future.result()
                    on_done()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _check_pickled(*values: Any) -> None:
    try:
        ForkingPickler.dumps(values)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the arguments cannot be sent to worker processes ({error}); pass functions defined in a module instead "
            "of lambdas and inner ones, and a model without hooks or by its path, or use processes=1"
        ) from error


def _start_worker(task: Any, progress: Any) -> None:
    global _TASK, _PROGRESS
    _TASK, _PROGRESS = task, progress
    import datasets
    import torch
    import transformers

    # More threads than cores slow each other down.
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    # Data loaders pin memory if there is a GPU, and warn otherwise.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def _run(index: int, item: Any) -> Any:
    return _TASK(item, lambda: _PROGRESS.put(index))
