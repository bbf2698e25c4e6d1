"""Runs one command exactly as long as its parent wants it, and leaves nothing of it behind.

    python supervisor.py GRACE COMMAND [ARGUMENT ...]

It knows processes, signals and pipes, Linux only and with the standard library alone; it knows nothing about vLLM.

A server such as vLLM is a tree of processes, and no single system call ends a tree when its owner is killed
with SIGKILL: a death signal reaches direct children only, and the grandchildren live on. This small process
stands between owner and server. Its standard input is the lifeline, a pipe whose other end only the owner
holds: when the owner closes it, or dies in whatever way, the kernel closes it, and the command is terminated:
SIGTERM, SIGTERM again, then SIGKILL to its whole process group, GRACE seconds apart. (The second SIGTERM is for
vLLM, which swallows one that arrives while its engine core is starting.) SIGTERM, SIGINT or SIGHUP to the
supervisor itself do the same. If the supervisor is the one that is killed, its child gets SIGTERM from the kernel,
and `Engine` kills the rest of the session.

The exit status is the command's, 128 + n where signal n ended it.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL = 0.2  # seconds between looks at the child; a closed lifeline is seen at once


def supervise(command: list[str], grace: float) -> int:
    """Run `command` until it ends or the lifeline does; its exit status, when the whole group is gone."""
    parent = os.getppid()
    asked = _note_signals()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphaned grandchildren become ours
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),  # safe: one thread
        )
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return 127

    def unwanted() -> bool:
        return bool(asked) or os.getppid() != parent or _closed(sys.stdin.fileno())

    while not _ended(child.pid):
        if unwanted():
            _terminate(child.pid, grace)
            break
    # The leader is dead but not yet reaped, so its group id cannot have been given to anybody else.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    status = child.wait()
    _reap_others(time.monotonic() + grace)
    return 128 - status if status < 0 else status


def _note_signals() -> list[int]:
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda caught, _frame: asked.append(caught))
    return asked


def _closed(lifeline: int) -> bool:
    """Whether the owner let go; waits POLL seconds where it did not."""
    readable, _, _ = select.select([lifeline], [], [], POLL)
    return bool(readable) and os.read(lifeline, 1) == b""


def _ended(pid: int) -> bool:
    """Whether the process is dead, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _terminate(pid: int, grace: float) -> None:
    """SIGTERM to the leader, again after `grace` seconds, then SIGKILL to its group."""
    attempts: tuple[Callable[[], None], ...] = (
        lambda: os.kill(pid, signal.SIGTERM),
        lambda: os.kill(pid, signal.SIGTERM),
        lambda: os.killpg(pid, signal.SIGKILL),
    )
    for attempt in attempts:
        attempt()
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            if _ended(pid):
                return
            time.sleep(0.05)


def _reap_others(deadline: float) -> None:
    """Collect what the group left, so that nothing of it exists any more when the supervisor ends."""
    with contextlib.suppress(ChildProcessError):  # none left
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[2:], float(sys.argv[1])))
