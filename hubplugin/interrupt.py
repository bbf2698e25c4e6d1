"""Ctrl-C waits where a library would turn it into something else.

Some try an import that was cut off again, and fail differently; a tensor's reader makes an error of any exception.
Knows signals and threads. Knows nothing of what they interrupt.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
