"""Engines forked from one process, with a stand-in for vLLM: what is imported once, and who ends when who dies."""

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from serve_helpers import end_with_their_owner, session_of, until

from hubplugin.errors import ServeError
from serve import engine, forking, ports

# The fork server with a vLLM that is a server of a few lines; its import says the process it happened in.
STUB = """
import http.server, os, subprocess, sys, time
from serve import fork_server, vllm_process
imported = os.getpid()
def run():
    port, manner = int(sys.argv[1]), sys.argv[2]
    print("imported by", imported, "answers", os.environ.get("ANSWER"), end=" ")
    print("group", os.getpgid(0) == os.getpid(), flush=True)
    if manner == "refuses":
        print("ValueError: no such model", file=sys.stderr)
        raise SystemExit(3)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
        def log_message(self, *args):
            pass
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
def load():
    time.sleep(float(os.environ.get("IMPORT_SECONDS", "0")))
    if os.environ.get("IMPORT_FAILS"):
        raise ImportError("libnuma.so.1: cannot open shared object file")
    return run
vllm_process.load = load
fork_server.main()
"""


@pytest.fixture
def server():
    """A fork server that is not started yet; whatever happens, it ends."""
    made = forking.ForkServer(("-c", STUB))
    yield made
    made.close()


def forked(server: forking.ForkServer, log: Path, manner: str = "serves", **environment: str) -> engine.Engine:
    """An engine of it."""
    port = ports.choose(ports.LOOPBACK, None)
    return engine.launch(
        [sys.executable, "-m", engine.MODULE],
        arguments=[str(port), manner],
        url=f"http://127.0.0.1:{port}",
        name="stub",
        environment={**os.environ, **environment},
        log=log,
        deadline=30,
        grace=1.0,
        fork_server=server,
    )


def test_engines_come_from_one_import_each_with_its_own_environment(server: forking.ForkServer, tmp_path: Path) -> None:
    with forked(server, tmp_path / "a", ANSWER="a") as one, forked(server, tmp_path / "b", ANSWER="b") as two:
        said = [file.read_text().split() for file in (tmp_path / "a", tmp_path / "b")]
        assert said[0][2] == said[1][2]  # the process that imported
        assert [words[4] for words in said] == ["a", "b"]
        assert [words[6] for words in said] == ["True", "True"]
        assert len(session_of(one.process.pid)) == len(session_of(two.process.pid)) == 3
        one.stop()
        until(lambda: session_of(one.process.pid) == [])  # the last to go is the supervisor itself
        assert two.process.poll() is None
    until(lambda: session_of(two.process.pid) == [])  # the last to go is the supervisor itself


def test_an_engine_outlives_its_fork_server_which_is_started_again(server: forking.ForkServer, tmp_path: Path) -> None:
    with forked(server, tmp_path / "a") as one:
        imported = int((tmp_path / "a").read_text().split()[2])
        os.kill(imported, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(imported) or psutil.Process(imported).status() == psutil.STATUS_ZOMBIE)
        with forked(server, tmp_path / "b") as two:
            assert one.process.poll() is two.process.poll() is None
            assert int((tmp_path / "b").read_text().split()[2]) != imported
    until(lambda: session_of(one.process.pid) == [])  # the last to go is the supervisor itself


def test_a_supervisor_that_is_killed_leaves_no_orphan(server: forking.ForkServer, tmp_path: Path) -> None:
    running = forked(server, tmp_path / "log")
    session = running.process.pid
    running.process.kill()
    assert running.wait() == 128 + signal.SIGKILL
    until(lambda: not session_of(session))


def test_the_exit_status_and_the_log_say_why(server: forking.ForkServer, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="no such model") as caught:
        forked(server, tmp_path / "log", "refuses")
    assert caught.value.where == "stub"
    assert "SystemExit" not in (tmp_path / "log").read_text()


def test_an_import_that_fails_is_told_to_whoever_asked(server: forking.ForkServer, tmp_path: Path) -> None:
    with pytest.raises(ServeError):
        forked(server, tmp_path / "log", IMPORT_FAILS="1")
    assert "libnuma" in (tmp_path / "log").read_text()


def test_what_is_given_up_during_the_import_is_not_waited_for(server: forking.ForkServer, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        asked = server.fork(["1", "serves"], {**os.environ, "IMPORT_SECONDS": "1"}, log, 1.0)
    assert asked.poll() is None
    asked.close()
    asked.terminate()
    assert asked.wait(5) == forking.LOST
    with forked(server, tmp_path / "other") as running:  # the next one is answered
        assert running.process.poll() is None


def test_an_owner_that_is_killed_leaves_no_orphan(tmp_path: Path) -> None:
    end_with_their_owner(
        "from test_fork_server import STUB, forked; from serve import forking\n"
        f"running = forked(forking.ForkServer(('-c', STUB)), Path({str(tmp_path / 'log')!r}))",
        lambda: int((tmp_path / "log").read_text().split()[2]),  # the process that imported
    )
