"""Ctrl-C waits where a library would turn it into something else, and is not lost where Python drops it.

Some libraries try an import that was cut off again, and fail differently; a tensor's reader makes an error of any
exception. Python itself only prints what is raised in __del__ or in the callback of a weak reference, and Ctrl-C comes
but once from a cluster, or from a script. Knows signals and threads. Knows nothing of what they interrupt.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_remembered: list[int] = []  # signals that came while `remembered` holds


@contextmanager
def held() -> Iterator[None]:
    """Ctrl-C inside the block is raised as KeyboardInterrupt at its end. No other thread than the main one gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt


@contextmanager
def remembered() -> Iterator[None]:
    """Ctrl-C inside the block is raised where it comes and, where that is dropped, again at the next `check`.

    A program that handles Ctrl-C itself goes on doing so.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _remembered.clear()


def check() -> None:
    """Raise KeyboardInterrupt where one was dropped; not while one is on its way to the top."""
    if _remembered and not isinstance(sys.exc_info()[1], KeyboardInterrupt):
        raise KeyboardInterrupt


def _remember(number: int, frame: object) -> None:
    _remembered.append(number)
    raise KeyboardInterrupt
