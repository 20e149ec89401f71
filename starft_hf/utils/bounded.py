"""Requests by the client of huggingface_hub whose answers are bounded while they arrive."""

import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from huggingface_hub.utils import get_session


T = TypeVar("T")

# Bytes, and the time by `time.monotonic` until which they may arrive.
_limits: ContextVar[tuple[int, float] | None] = ContextVar("limits", default=None)


class AnswerTooLargeError(ValueError):
    """A server sends more than an answer can have."""


def bounded(call: Callable[[], T], most: int, seconds: float) -> T:
    """What `call` returns, which makes requests through huggingface_hub.

    Raises:
        AnswerTooLargeError: if an answer has more than `most` bytes, or is compressed although that was not asked for;
            no more of it is read.
        TimeoutError: if an answer is still arriving after so many seconds.
    """
    hooks = get_session().event_hooks["response"]
    if _bound not in hooks:
        hooks.append(_bound)
    token = _limits.set((most, time.monotonic() + seconds))
    try:
        return call()
    finally:
        _limits.reset(token)


def _bound(response: Any) -> None:
    """Bound the body of a response, which has not been read yet."""
    limits = _limits.get()
    if limits is None:
        return
    most, end = limits
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise AnswerTooLargeError(f"the answer is compressed ({encoding}), so its size is unknown")
    stream = response.stream
    # The client accepts streams of its own kind only.
    kind: Any = next(each for each in type(stream).__mro__ if each.__name__ == "SyncByteStream")

    class Bounded(kind):
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for chunk in stream:
                size += len(chunk)
                if size > most:
                    raise AnswerTooLargeError(f"the answer has more than {most:,} bytes")
                if time.monotonic() > end:
                    raise TimeoutError("the answer was still arriving when its time was over")
                yield chunk

        def close(self) -> None:
            stream.close()

    response.stream = Bounded()
