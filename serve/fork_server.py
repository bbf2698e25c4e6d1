"""A process that has imported vLLM and forks engines: the first waits for the import, the others start in seconds.

    python -m serve.fork_server DESCRIPTOR

DESCRIPTOR is a socket (SOCK_SEQPACKET) on which the owner asks for engines: a JSON object with `arguments`,
`environment` and `grace`, and with it two descriptors, the engine's log and its lifeline, a socket too. For each, a
supervisor is forked, which forks vLLM's API server and writes `pid N` and in the end `status N` to the lifeline.
It forks and never starts a thread. It ends when the owner closes the socket; engines live on, each by its lifeline.
`forking` is the owner's side.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from types import TracebackType
from typing import Any

from serve import supervisor, vllm_process

MESSAGE = 2**20  # bytes; more than an environment and a command line may have


def main() -> None:
    """Import, then fork until the owner has gone."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _show(
            "serve.fork_server"
        )  # the package finds its place in memory by the environment that the process began with
        try:
            run = vllm_process.load()
        except (ImportError, OSError, RuntimeError):
            why = traceback.format_exc()

            def run() -> None:  # whoever asks is told
                sys.exit(why)

        gc.collect()
        gc.freeze()  # a collection in a fork would touch, and so copy, every page
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, MESSAGE, 2)
            if not message:
                return
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if os.fork() == 0:
                control.close()
                log, lifeline = descriptors
                with _Last():
                    _supervise(json.loads(message), log, lifeline, run)
            for descriptor in descriptors:
                os.close(descriptor)


class _Last:
    """What happens within is all that a fork does: it ends there as an interpreter ends, with a traceback and a status,
    and returns to nobody."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = int(kind is not None)
        if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            status = error.code or 0
        elif isinstance(error, SystemExit):
            sys.stderr.write(f"{error.code}\n")
        elif kind is not None:
            traceback.print_exception(kind, error, trace)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _supervise(asked: dict[str, Any], log: int, lifeline: int, run: vllm_process.Main) -> None:
    os.setsid()  # ctrl-C in the terminal reaches only the owner
    os.dup2(log, 1)
    os.dup2(log, 2)
    _show("serve.supervisor")
    with socket.socket(fileno=lifeline) as line, contextlib.suppress(BrokenPipeError):  # nobody wants to know any more
        line.send(b"pid %d" % os.getpid())
        status = supervisor.supervise(lambda: _begin(asked, lifeline, run), asked["grace"], lifeline)
        line.send(b"status %d" % status)


def _begin(asked: dict[str, Any], lifeline: int, run: vllm_process.Main) -> int:
    leader = os.fork()
    if leader:
        with contextlib.suppress(OSError):  # the child did it already
            os.setpgid(leader, leader)
        return leader
    with _Last():
        os.setpgid(0, 0)
        os.close(lifeline)  # held by the supervisor alone, or its death would not be seen
        supervisor.end_with_parent()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv[:] = ["vllm", *asked["arguments"]]
        _show(" ".join(["serve.vllm_process", *asked["arguments"]]))
        run()
    return 0  # never: `_Last` does not return


def _show(title: str) -> None:
    """Have `ps` show what this process is, by a package that vLLM comes with; its engine core names itself."""
    with contextlib.suppress(ImportError):
        importlib.import_module("setproctitle").setproctitle(title)


if __name__ == "__main__":
    main()
