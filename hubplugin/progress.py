"""Talk on stderr: plain lines, and a progress line for a long pass where stderr is a terminal. stdout is for results.

It knows whether it should be quiet and whether somebody watches, and nothing about what is being done. Long work comes
by here at every block, and ends here where Ctrl-C was dropped on its way.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hubplugin import interrupt

QUIET = "HUBPLUGIN_QUIET"  # in the environment, so that processes which are started inherit it
# The libraries' own progress bars, which they read when they are imported.
BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
LINE_SECONDS = 10  # at least, between two lines of one task that come now and then
REFRESHES = 2.0  # a second: the cores are needed elsewhere


def silence() -> None:
    """Make this process, and all that it starts, quiet: only errors reach stderr. Call it before libraries load."""
    for name in (QUIET, *BARS):
        os.environ[name] = "1"


def quiet() -> bool:
    """Whether only errors may be printed on stderr."""
    return os.environ.get(QUIET, "").lower() not in ("", "0", "false", "no")


def progress(line: str) -> None:
    """One line of talk on stderr; nothing where it is quiet."""
    interrupt.check()
    if not quiet():
        print(line, file=sys.stderr, flush=True)


def now_and_then(task: str, blocks: int) -> Callable[[int], None]:
    """A function that is called with the index of each finished block, and says so in a line now and then."""
    last = time.monotonic()

    def after_block(index: int) -> None:
        nonlocal last
        interrupt.check()
        if time.monotonic() - last > LINE_SECONDS:
            last = time.monotonic()
            progress(f"{task} | block {index + 1:02d}/{blocks}")

    return after_block


@dataclass(frozen=True)
class Bar:
    """The progress of one pass; `move` redraws it where there is something to redraw."""

    move: Callable[[], None]

    def advance(self, line: str) -> None:
        """One block is done: print its line and move the progress line by one."""
        progress(line)
        self.move()


@contextmanager
def track(task: str, total: int, completed: int = 0) -> Iterator[Bar]:
    """Show the progress of a pass over `total` blocks, `completed` of which an earlier run has finished.

    On a terminal one line below all others says the task, the block, the time elapsed and the time left; it is replaced
    in place and erased at the end. Everything else printed on stderr meanwhile stays above it, as plain lines. Where
    stderr is no terminal, or it is quiet, there are only the lines of `advance`. Not to be nested.
    """
    if quiet() or not sys.stderr.isatty():
        yield Bar(_nothing)
        return
    from rich.console import Console  # a tenth of a second, which only a terminal needs

    # soft_wrap: lines longer than the terminal stay one line when they are copied
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, emoji=False)
    if not console.is_interactive:  # a terminal that cannot move its cursor
        yield Bar(_nothing)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description} | block {task.completed:.0f}/{task.total:.0f}", markup=False),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # results do not go to stderr
        refresh_per_second=REFRESHES,
        speed_estimate_period=float("inf"),  # a block may take longer than rich's half a minute
    ) as display:
        shown = display.add_task(task, total=total, completed=completed)
        yield Bar(lambda: display.update(shown, advance=1, refresh=True))


def _nothing() -> None:
    """Where no progress line is shown there is none to move."""
