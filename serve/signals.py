"""Being asked to stop: SIGINT and SIGTERM for a program that serves in the foreground.

It knows nothing about what is being served.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, the first time only: what is then being stopped is not
    disturbed.

    Yields the list of signals that came.
    """
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) == 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(caught: list[int]) -> int:
    """130 where ctrl-C was first, as shells expect; 0 where a supervisor asked with SIGTERM."""
    return 128 + signal.SIGINT if caught[:1] == [signal.SIGINT] else 0


def wait() -> None:
    """Until one of them comes, which raises KeyboardInterrupt."""
    while True:
        signal.pause()
