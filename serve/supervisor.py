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

`fork_server` runs `supervise` too, in a process of its own for each engine that it forks.

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


def supervise(begin: Callable[[], int], grace: float, lifeline: int, owner: int | None = None) -> int:
    """Begin a process and wait until it ends, the lifeline is closed or `owner` is not the parent any more; its exit
    status, when its whole group is gone.

    begin     starts it, as leader of a process group of its own, and returns its id
    grace     seconds between signals
    lifeline  descriptor of a pipe or socket
    owner     process id; None: the lifeline alone counts
    """
    asked = _note_signals()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphaned grandchildren become ours
    leader = begin()

    def unwanted() -> bool:
        return bool(asked) or owner not in (None, os.getppid()) or _closed(lifeline)

    while not _ended(leader):
        if unwanted():
            _terminate(leader, grace)
            break
    # The leader is dead but not yet reaped, so its group id cannot have been given to anybody else.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1])
    _reap_others(time.monotonic() + grace)
    return 128 - status if status < 0 else status


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _begin(command: list[str]) -> int:
    # one thread, so running something between fork and exec is safe
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=end_with_parent)
    child.returncode = 0  # it is waited for by its id
    return child.pid


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


def main() -> int:
    """The exit status."""
    owner, command = os.getppid(), sys.argv[2:]
    try:
        return supervise(lambda: _begin(command), float(sys.argv[1]), sys.stdin.fileno(), owner)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main())
