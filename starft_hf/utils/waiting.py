"""Waiting for servers: with a limit, and in a way that a signal can end."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from transformers.utils import logging


logger = logging.get_logger(__name__)

T = TypeVar("T")

# Seconds that a request may take, and bytes a second that an upload should at least make.
DEFAULT_TIMEOUT = 60.0
_SLOWEST = 100_000

# Seconds after which it is logged what is being waited for.
_PATIENCE = 10.0
_POLL = 0.1

_given_up = False


class NoAnswerError(TimeoutError):
    """A server did not answer within the limit."""


def in_background(call: Callable[[], T]) -> "Future[T]":
    """A future of `call`, in a thread that does not keep the interpreter from exiting."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="request", daemon=True).start()
    return future


def answered(call: Callable[[], T], what: str, timeout: float | None = None) -> T:
    """What `call`, a request to a server, returns or raises.

    It runs in a thread of its own, so that SIGINT and SIGTERM take effect while this one waits.

    Args:
        call: makes the request.
        what: what is waited for, as in "the Hub, for the repository".
        timeout: seconds; None is `DEFAULT_TIMEOUT`.

    Raises:
        NoAnswerError: after that time. The request is abandoned, not stopped.
    """
    limit = DEFAULT_TIMEOUT if timeout is None else timeout
    return result_of(in_background(call), what, limit)


def result_of(future: "Future[T]", what: str, limit: float) -> T:
    """The result of a future, waiting for `limit` seconds at most, as `answered` does."""
    done, start, said = threading.Event(), time.monotonic(), False
    future.add_done_callback(lambda _: done.set())
    while not done.wait(_POLL):
        waited = time.monotonic() - start
        if _given_up or waited > limit:
            why = "a signal ended the wait for an answer" if _given_up else f"no answer for {limit:.0f} seconds"
            raise NoAnswerError(f"{why} from {what}")
        if waited > _PATIENCE and not said:
            said = True
            logger.warning("Waiting for %s, for up to %.0f seconds.", what, limit)
    return future.result()


def give_up(now: bool) -> None:
    """Let no call wait for an answer from now on, or let them wait again; for signal handlers that do not raise."""
    global _given_up
    _given_up = now


def upload_limit(size: int, timeout: float | None = None) -> float:
    """Seconds that an upload of `size` bytes may take: the limit of a request, and a second for every 100 KB."""
    return (DEFAULT_TIMEOUT if timeout is None else timeout) + size / _SLOWEST
