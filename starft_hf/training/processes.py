"""Runs tasks side by side, in worker processes of one thread each."""

import pickle
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar


Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    task: Callable[[Item], Result], items: Sequence[Item], processes: int, on_done: Callable[[], Any]
) -> list[Result]:
    """The results of `task` for every item, in order; `on_done` is called here after every task.

    If one fails, those that have not started are canceled, and its exception is raised.
    """
    try:
        ForkingPickler.dumps((task, *items[:1]))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the arguments cannot be sent to worker processes ({error}); pass functions defined in a module instead "
            "of lambdas and inner ones, and a model without hooks or by its path, or use processes=1"
        ) from error
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_worker) as pool:
        futures = [pool.submit(task, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
                on_done()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _start_worker() -> None:
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
