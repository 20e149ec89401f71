"""Measurements in processes of their own, with an allocator that suits them."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch


# glibc gives large tensors back to the system when they are freed and gets them anew, page by page, when they are
# needed: a tenth of a step on CPUs, and most of the noise. Kept, as by jemalloc or tcmalloc, for what is timed...
KEEPS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**35),
    "MALLOC_TOP_PAD_": str(2**26),
}
# ...and given back at once where memory is measured: otherwise the figure is that of the allocator's fragments.
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def in_fresh_process(allocator: dict[str, str], function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """What `function` returns in a process that starts with this `allocator`, which is read at the start alone."""
    with patch.dict(os.environ, allocator), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args, **settings).result()
