"""A teacher behind an OpenAI-compatible endpoint: a real server, its key, its faults, and killed runs."""

import json
import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hubplugin.compress.calibration.prompts import Prompt
from hubplugin.errors import ServeError
from hubplugin.manifest.steps.training.distill import Answers
from hubplugin.recovery.answers import asking
from hubplugin.recovery.answers.cache import Answer
from hubplugin.recovery.answers.endpoint import Endpoint

SECRET = "s3cret-of-the-teacher"
ASKED = [Prompt(text=f"text {number}") for number in range(6)] + [
    Prompt(turns=(("system", "be brief"), ("user", f"question {number}"))) for number in range(6)
]


class Server(ThreadingHTTPServer):
    """Answers as OpenAI's API does, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []
        self.fail_after, self.pause, self.status, self.lock = 10**9, 0.0, 500, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def prompts(self) -> list[str]:
        return [body["prompt"] if "prompt" in body else body["messages"][-1]["content"] for _, body, _ in self.requests]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, body, self.headers.get("Authorization")))
            failed = len(self.server.requests) > self.server.fail_after
        time.sleep(self.server.pause)
        if failed:
            return self._send(self.server.status, "application/json", b'{"error": {"message": "overloaded"}}')
        finish = "length" if body["max_tokens"] < 5 else "stop"
        if self.path == "/v1/completions":
            choice = {"text": f" goes on after {body['prompt']}", "finish_reason": finish}
            return self._send(200, "application/json", json.dumps({"choices": [choice]}).encode())
        words = ["You asked: ", body["messages"][-1]["content"]]
        chunks = [{"choices": [{"delta": {"content": word}, "finish_reason": None}]} for word in words]
        chunks.append({"choices": [{"delta": {}, "finish_reason": finish}]})
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        return self._send(200, "text/event-stream", events.encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def ask(url: str, file: Path, prompts: list[Prompt] = ASKED, **settings: Any) -> list[Answer]:
    teacher = Endpoint(Answers(endpoint=url, model="big", **settings))
    return asking.ask(prompts, teacher.settings, teacher.identity, file, lambda: teacher)


def test_texts_are_continued_and_conversations_answered_each_once(server: Server, tmp_path: Path) -> None:
    found = ask(server.url, tmp_path / "a.jsonl", temperature=0.5, max_tokens=9, seed=3)
    assert found[2] == Answer(" goes on after text 2", True) and found[8] == Answer("You asked: question 2", True)
    assert sorted(server.prompts()) == sorted(
        [*(one.text for one in ASKED[:6]), *(one.turns[-1][1] for one in ASKED[6:])]
    )
    for path, body, key in server.requests:
        assert body["model"] == "big" and body["temperature"] == 0.5 and body["max_tokens"] == 9 and key is None
        assert path == ("/v1/chat/completions" if "messages" in body else "/v1/completions")
        assert "messages" not in body or body["messages"][0] == {"role": "system", "content": "be brief"}
    assert sorted(body["seed"] for _, body, _ in server.requests) == list(range(3, 15)), "each its own"
    assert ask(server.url, tmp_path / "a.jsonl", temperature=0.5, max_tokens=9, seed=3) == found
    assert len(server.requests) == 12, "what was asked once is not asked again"
    cut = ask(server.url, tmp_path / "a.jsonl", ASKED[:1], temperature=0.5, max_tokens=4, seed=3)
    assert not cut[0].ended and len(server.requests) == 13


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ServeError, match="TEACHER_KEY is not set") as refusal:
        ask(server.url, tmp_path / "a.jsonl", key="TEACHER_KEY")
    assert "export TEACHER_KEY" in refusal.value.fix and not server.requests
    monkeypatch.setenv("TEACHER_KEY", SECRET)
    ask(server.url, tmp_path / "a.jsonl", key="TEACHER_KEY")
    assert {key for _, _, key in server.requests} == {f"Bearer {SECRET}"}
    server.status, server.fail_after = 401, 0
    with pytest.raises(ServeError, match="another API key") as wrong:
        ask(server.url, tmp_path / "b.jsonl", key="TEACHER_KEY")
    assert "set TEACHER_KEY" in wrong.value.fix and "VLLM_API_KEY" not in wrong.value.fix
    said = capsys.readouterr()
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET not in said.err + said.out + written + str(wrong.value)


def test_answers_that_arrived_before_a_fault_are_kept(server: Server, tmp_path: Path) -> None:
    server.fail_after = 5
    with pytest.raises(ServeError, match="500") as fault:
        ask(server.url, tmp_path / "a.jsonl")
    assert "answers that have arrived are kept" in fault.value.fix
    kept = len((tmp_path / "a.jsonl").read_text().splitlines())
    before, server.fail_after = len(server.requests), 10**9
    found = ask(server.url, tmp_path / "a.jsonl")
    assert 0 <= kept <= 5 and len(server.requests) - before == len(ASKED) - kept and all(one.text for one in found)


def test_a_server_that_speaks_otherwise_is_named(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "do_POST", lambda self: self._send(200, "application/json", b'{"answer": 42}'))
    with pytest.raises(ServeError, match="does not answer as an OpenAI-compatible server"):
        ask(server.url, tmp_path / "a.jsonl", ASKED[:1])
    with pytest.raises(ServeError, match="nothing answers"):
        ask("http://127.0.0.1:9", tmp_path / "a.jsonl", ASKED[:1])


def _ask(url: str, file: Path) -> None:
    ask(url, file)


def test_a_killed_run_asks_only_what_it_has_no_answer_to(server: Server, tmp_path: Path) -> None:
    file, server.pause = tmp_path / "a.jsonl", 0.3
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["hubplugin.recovery.answers.endpoint"])
    worker = processes.Process(target=_ask, args=(server.url, file))
    worker.start()
    until = time.monotonic() + 60
    while not (file.is_file() and file.read_bytes().count(b"\n") >= 2) and time.monotonic() < until:
        time.sleep(0.005)
    worker.kill()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    kept, server.pause = file.read_bytes().count(b"\n"), 0.0
    time.sleep(0.5)  # requests under way when it was killed
    before = len(server.requests)
    found = ask(server.url, file)
    assert 2 <= kept < len(ASKED) and len(server.requests) - before == len(ASKED) - kept
    assert found[0].text == " goes on after text 0" and found[11].text == "You asked: question 5"
