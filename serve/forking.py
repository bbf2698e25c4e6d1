"""The owner's side of `fork_server`: start one, ask it for engines, look after them. Never imports vLLM."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Protocol

LOST = 128 + signal.SIGTERM  # the status of an engine that was given up before it was forked


class Process(Protocol):
    """What engines need of the process that supervises one; `subprocess.Popen` has it."""

    @property
    def pid(self) -> int:
        """Its id, which is also that of its session."""

    def poll(self) -> int | None:
        """Its exit status, negative where a signal ended it; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; raises subprocess.TimeoutExpired after `timeout` seconds."""

    def terminate(self) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL."""


class Forked:
    """A supervisor that a fork server has forked, or is about to; closing it is what closing a lifeline is."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._lock, self._pid, self._status = line, threading.Lock(), 0, None

    _status: int | None

    @property
    def pid(self) -> int:
        """0 while there is none yet."""
        self.poll()
        return self._pid

    def poll(self) -> int | None:
        """As of Popen."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """As of Popen."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self._look(0.1)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("vLLM", timeout or 0.0)
        return status

    def close(self) -> None:
        """Let go of it: it ends."""
        with contextlib.suppress(OSError):  # done already
            self._line.shutdown(socket.SHUT_WR)

    def terminate(self) -> None:
        """As of Popen; given up where there is no process yet."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """As of Popen; given up where there is no process yet."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.poll() is None and self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)
        elif self._status is None:
            self._end(LOST)

    def _look(self, seconds: float) -> int | None:
        """Take what has come on the line, waiting for at most `seconds`."""
        with self._lock:
            while self._status is None and select.select([self._line], [], [], seconds)[0]:
                try:
                    said = self._line.recv(64).split()
                except OSError:
                    said = []
                if not said:  # it ended, and did not say how
                    self._end(-signal.SIGKILL if self._pid else 1)
                elif said[0] == b"pid":
                    self._pid = int(said[1])
                else:
                    self._end(int(said[1]))
                seconds = 0
            return self._status

    def _end(self, status: int) -> None:
        self._status = status
        self._line.close()


class ForkServer:
    """A process that has imported vLLM, or does; started when it is first asked, and again where it has died.

    `words` are what Python runs, before the descriptor that it is given.
    """

    def __init__(self, words: Sequence[str] = ("-m", "serve.fork_server")) -> None:
        self._words, self._lock = words, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def fork(self, arguments: Sequence[str], environment: dict[str, str], log: IO[bytes], grace: float) -> Forked:
        """vLLM's API server with these arguments, under a supervisor of its own."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = json.dumps({"arguments": list(arguments), "environment": environment, "grace": grace}).encode()
        with theirs, self._lock:
            control = self._started(environment)
            control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(asked) + 4096)
            socket.send_fds(control, [asked], [log.fileno(), theirs.fileno()])
        return Forked(ours)

    def close(self) -> None:
        """End it; engines that it forked live on."""
        with self._lock:
            if self._process is not None and self._control is not None:
                self._control.close()
                self._process.kill()  # it may be importing
                self._process.wait()
            self._process = self._control = None

    def _started(self, environment: dict[str, str]) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        if self._control is not None:
            self._control.close()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, *self._words, str(theirs.fileno())]
        quiet = subprocess.DEVNULL
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=quiet,
                stdout=quiet,
                stderr=quiet,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return self._control


_kept: list[ForkServer] = []


def current() -> ForkServer | None:
    """The fork server that engines of this process are to come from; None: each imports vLLM for itself."""
    return _kept[-1] if _kept else None


@contextlib.contextmanager
def kept() -> Iterator[ForkServer]:
    """Engines that are started meanwhile come from one fork server, where vLLM runs on a CPU."""
    server = ForkServer()
    _kept.append(server)
    try:
        yield server
    finally:
        _kept.remove(server)
        server.close()
