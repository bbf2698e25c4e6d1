"""A folder or a repo id becomes a running vLLM: start, wait for health, stop, say why where it does not.

vLLM is a process here, never an import. It runs under `supervisor`, which ends the whole tree of processes
when this one lets go or dies. How vLLM is set up for a CPU or a GPU is known to `vllm_settings`, what its log
means to `vllm_errors`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import httpx
import psutil

from hubplugin.errors import ServeError
from serve import codes, forking, ports, vllm_errors, vllm_settings

SUPERVISOR = Path(__file__).with_name("supervisor.py")
MODULE = "serve.vllm_process"
# Seconds vLLM gets after each signal before the next one. It needs one to stop in good order; and where an answer is
# still being streamed its HTTP server waits for ever for the connection to close, so that more would only be waited.
GRACE = 5.0
DEADLINE = 900.0  # seconds from start to the first 200 of /health

Progress = Callable[[str], None]

# What a line of vLLM's log means to somebody who waits.
MILESTONES = (
    ("non-default args", "reading the model's configuration"),
    ("Initializing a V1 LLM engine", "starting the engine"),
    ("Starting to load model", "loading the weights"),
    ("KV cache size", "the KV cache is ready"),
    ("Starting vLLM server", "opening the endpoint"),
)


@dataclass
class Engine:
    """A server that answers at `url` (no /v1) under the model name `name`, over a Unix domain socket where it has one.

    `process` is the supervisor: it ends when, and only when, nothing of vLLM is left.
    """

    url: str
    name: str
    process: forking.Process
    lifeline: IO[bytes] | forking.Forked  # the process ends when it is closed
    log: Path
    socket: Path | None = None
    temporary_log: bool = False
    grace: float = GRACE
    stopping: bool = field(default=False, init=False)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End vLLM and everything it started. Calling it again, or after vLLM has died, does nothing."""
        died = self.process.poll() is not None and not self.stopping
        self.stopping = True
        self.lifeline.close()  # the supervisor now terminates vLLM
        self.process.terminate()  # and where a forked child of ours still holds a copy of the lifeline
        try:
            self.process.wait(timeout=4 * self.grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.wait()
        if self.temporary_log and not died:
            self.log.unlink(missing_ok=True)  # one of an engine that died is kept: it is the evidence

    def wait(self) -> int:
        """Wait until vLLM has ended; its exit status, 128 + n where signal n ended it."""
        status = self.process.wait()
        if status < 0:  # the supervisor itself was killed: what it ran is ours to end
            kill_session(self.process.pid)
            status = 128 - status
        return status


def start(
    model: str | Path,
    *,
    name: str,
    host: str = ports.LOOPBACK,
    port: int | None = None,
    socket: Path | None = None,
    max_model_len: int | None = None,
    extra: tuple[str, ...] = (),
    log: Path | None = None,
    on_progress: Progress | None = None,
    deadline: float = DEADLINE,
    unwanted: threading.Event | None = None,
    asked: str | None = None,
) -> Engine:
    """Start vLLM for a folder (or a repo id, which vLLM then downloads) and return when /health says 200.

    name           the model name that requests carry
    port           a free one where None
    socket         path of a Unix domain socket to listen on, of at most 107 bytes, in place of host and port
    max_model_len  tokens of prompt and answer together; None: the model's own on a GPU, at most 4096 on a CPU
    extra          further arguments for vLLM, as typed; they win over ours. No secrets: argv is public
    log            where vLLM's output goes; None: a temporary file, removed after a stop in good order
    deadline       seconds
    unwanted       set by another thread: the start is given up, which is an error too
    asked          the model name that requests carry where that is not `name`: an adapter's, which `extra` brings

    An API key is taken from VLLM_API_KEY and a Hub token from HF_TOKEN, both in the environment only.
    Raises ServeError with the first cause found in the log where vLLM does not get ready.
    """
    progress = on_progress or (lambda _line: None)
    config = vllm_settings.read_config(model)
    device = vllm_settings.find_device()
    vllm_settings.refuse_unservable(device, config, name, extra)
    if socket is None:
        port = ports.choose(host, port)
        place, url = ["--host", host, "--port", str(port)], ports.url(host, port)
    else:
        place, url = ["--uds", str(socket)], "http://engine"
    words = vllm_settings.words(
        model, name, place, device=device, config=config, max_model_len=max_model_len, extra=extra
    )
    dense = ", dense weights made of its codes" if codes.LOAD_FORMAT in words else ""
    progress(f"starting vLLM on the {'GPU' if device == 'cuda' else 'CPU'} for {name}{dense}")
    if socket is None and not ports.is_loopback(host) and not os.environ.get("VLLM_API_KEY"):
        progress(f"{host} is not loopback and VLLM_API_KEY is not set: whoever reaches the port can use it")
    return launch(
        [sys.executable, "-m", MODULE],
        arguments=words,
        fork_server=forking.current() if device == "cpu" else None,
        url=url,
        socket=socket,
        unwanted=unwanted,
        name=asked or name,
        environment=vllm_settings.environment(device, local=config is not None, deadline=deadline),
        log=log,
        progress=progress,
        deadline=deadline,
    )


def launch(
    program: list[str],
    *,
    arguments: Sequence[str] = (),
    url: str,
    name: str,
    environment: dict[str, str],
    socket: Path | None = None,
    log: Path | None = None,
    progress: Progress = lambda _line: None,
    deadline: float = DEADLINE,
    grace: float = GRACE,
    unwanted: threading.Event | None = None,
    fork_server: forking.ForkServer | None = None,
) -> Engine:
    """Run `program` with `arguments` under a supervisor and return when `url`/health answers 200; raises ServeError
    where it never does. Where there is a fork server, a fork of that gets the arguments: it has imported MODULE, which
    is the program then.
    """
    temporary = log is None
    if log is None:
        handle, path = tempfile.mkstemp(prefix="hubplugin-vllm-", suffix=".log")  # readable by its owner only
        os.close(handle)
        log = Path(path)
    process: forking.Process
    lifeline: IO[bytes] | forking.Forked
    with log.open("wb") as sink:
        if fork_server is not None:
            process = lifeline = fork_server.fork(arguments, environment, sink, grace)
        else:
            process, lifeline = spawn([*program, *arguments], environment, stdout=sink, stderr=sink, grace=grace)
    engine = Engine(url, name, process, lifeline, log, socket, temporary_log=temporary, grace=grace)
    began = time.monotonic()
    try:
        _wait_until_healthy(engine, progress, began + deadline, unwanted or threading.Event())
    except BaseException:  # ctrl-C included: whatever ends the wait ends the engine
        engine.stop()
        raise
    progress(f"ready in {time.monotonic() - began:.0f} s" + (f" at {url}" if socket is None else ""))
    return engine


def spawn(
    command: list[str], environment: dict[str, str], *, stdout: Any, stderr: Any, grace: float = GRACE
) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """`command` under a supervisor in a session of its own, so that ctrl-C in the terminal reaches only us; and the
    lifeline, at whose end it is terminated."""
    supervised = [sys.executable, "-I", "-S", str(SUPERVISOR), str(grace), *command]
    process = subprocess.Popen(
        supervised, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
    )
    assert process.stdin is not None
    return process, process.stdin


def _wait_until_healthy(engine: Engine, progress: Progress, deadline: float, unwanted: threading.Event) -> None:
    waiting = list(MILESTONES)
    transport = httpx.HTTPTransport(uds=str(engine.socket)) if engine.socket else None
    with engine.log.open("rb") as log, httpx.Client(trust_env=False, timeout=5, transport=transport) as client:
        while True:
            text = log.read().decode("utf-8", "replace")
            while waiting and any(needle in text for needle, _ in waiting):
                needle, phrase = waiting.pop(0)
                if needle in text:
                    progress(phrase)
            if engine.process.poll() is not None:
                raise _start_error(engine, f"vLLM ended with status {engine.wait()} before it was ready")
            if time.monotonic() > deadline:
                raise _start_error(engine, "vLLM was not ready in time")
            if unwanted.is_set():
                raise ServeError(engine.name, "its start was given up", "start it again")
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{engine.url}/health").status_code == 200:
                    return
            time.sleep(0.2)


def _start_error(engine: Engine, otherwise: str) -> ServeError:
    engine.temporary_log = False  # the evidence stays
    cause = vllm_errors.find_cause(engine.log.read_text("utf-8", "replace"))
    if cause is None:
        return ServeError(engine.name, otherwise, f"read {engine.log}")
    return ServeError(engine.name, cause.what, cause.fix or f"read {engine.log}")


def kill_session(session: int) -> None:
    """SIGKILL to every process of a session."""
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session:
                os.kill(process.pid, signal.SIGKILL)
