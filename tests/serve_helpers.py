"""What the serve tests share: a fake OpenAI server that can also misbehave, a browser, a look at processes."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from hubplugin.plan.variant_plan import VariantPlan
from serve import cpu_features, vllm_settings

DEMO = Path(__file__).parents[1] / "hubplugin" / "demo" / "docs-llama-12m"
WORDS = ["A ", "list ", "holds ", "items ", "in ", "order.\u2028"]  # U+2028 is no line end in an event stream


def until(true: Callable[[], Any], seconds: float = 30.0, shown: Callable[[], object] | None = None) -> Any:
    """Poll until `true()` is; fails the test where it never is, and says what is `shown` then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := true():
            return value
        time.sleep(0.02)
    raise AssertionError(f"it never became true{f': {shown()!r}' if shown else ''}")


def end_with_their_owner(start: str, *others: Callable[[], int]) -> None:
    """Run Python that makes `running`, an engine of three processes, in a process of its own, and kill that: all of the
    engine ends, and so do the processes that `others` tell once it runs."""
    here = Path(__file__).parent
    script = f"import sys; sys.path[:0] = [{str(here.parent)!r}, {str(here)!r}]\nfrom pathlib import Path\n{start}\n"
    script += "print(running.process.pid, flush=True)\nrunning.wait()\n"
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    supervisor = int(owner.stdout.readline())
    pids = [other() for other in others]
    assert len(session_of(supervisor)) == 3
    owner.kill()
    owner.wait()
    until(lambda: not session_of(supervisor) and not any(psutil.pid_exists(pid) for pid in pids))


def skip_without_kernels(variant: VariantPlan) -> None:
    """Skip a test that has vLLM run a variant whose codes this CPU cannot run, nor dense weights made of them."""
    features = next(
        () if verdict.dense else verdict.features for verdict in variant.verdicts if verdict.target == "cpu"
    )
    if vllm_settings.find_device() == "cpu" and (missing := cpu_features.missing(features)):
        pytest.skip(f"vLLM's CPU kernels for this variant need {' and '.join(features)}: this CPU has no {missing}")


class Fake(ThreadingHTTPServer):
    """An OpenAI-compatible server. What it does is told by the model's name: see `_Handler.do_POST`."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.models = ["steady"]
        self.base = "/v1"  # the path under which it answers
        self.listing: Any = None  # what `models` answers instead of the models
        self.refuses: dict[str, tuple[int, Any]] = {}  # keys of a request that it answers with an error
        self.raw: list[bytes] | None = None  # the body of an answer, instead of events with the words
        self.words = WORDS
        self.says: dict[str, list[str]] = {}  # words of a model, instead of `words`
        self.logprobs: dict[str, dict[str, float]] = {}  # of a model's words, where they are asked for
        # Of a model, the likeliest words at the place of each word, where they are asked for.
        self.likeliest: dict[str, dict[str, dict[str, float]]] = {}
        self.vocabulary: list[str] = []  # numbers words as vLLM does; without it the server knows OpenAI's keys alone
        self.scores = True  # whether it says what a model says of a given text, as vLLM does
        self.facts: dict[str, dict[str, Any]] = {}  # what the list says of a model, beside its name
        self.pause = 0.0  # seconds between two words
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []  # of GET requests
        self.posted: list[str] = []  # paths of POST requests
        self.keys: list[str | None] = []  # of all requests
        self.hung_up = threading.Event()  # a client closed the connection before the answer was complete
        self.left: list[str] = []  # the models whose answers were not waited for
        self.release = threading.Event()  # lets a silent answer end
        self.sockets: list[Any] = []

    def die(self) -> None:
        """Break every open connection and stop listening, as a killed process does."""
        self.shutdown()
        self.server_close()
        for connection in self.sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: Fake
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.keys.append(self.headers.get("authorization"))
        if self.path.partition("?")[0] == f"{self.server.base}/models" and self.server.listing != 404:
            rows = [{"id": name} | self.server.facts.get(name, {}) for name in self.server.models]
            usual = {"object": "list", "data": rows}
            self._json(200, usual if self.server.listing is None else self.server.listing)
        else:
            self._json(404, {"error": {"message": "no such path"}})

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        request = json.loads(self.rfile.read(length))
        self.server.requests.append(request)
        self.server.posted.append(self.path)
        self.server.keys.append(self.headers.get("authorization"))
        model = request["model"]
        if model.startswith("status-"):
            status = int(model.split("-")[1])
            self._json(status, {"error": {"message": request["messages"][-1]["content"], "code": status}})
            return
        for key, answer in self.server.refuses.items():
            if key in request:
                self._json(*answer)
                return
        if self.path == f"{self.server.base}/completions":
            self._score(model, request)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if self.server.raw is None else "application/json")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            self._answer(model, request)
        except OSError:
            self.server.hung_up.set()
            self.server.left.append(model)
        self.close_connection = True

    def _answer(self, model: str, request: dict[str, Any]) -> None:
        for chunk in self.server.raw or ():
            self.wfile.write(chunk)
            self.wfile.flush()
        if self.server.raw is not None:
            return
        prompt = {"prompt_token_ids": [0, 1]} if self._numbers(request) else {}
        self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}], **prompt})
        words = self.server.says.get(model, self.server.words)
        for count, word in enumerate(words):
            if self.server.pause:
                self.server.release.wait(self.server.pause)
            if count == 2 and model == "dies":
                self.wfile.write(b'data: {"choices": [{"del')
                return
            if count == 2 and model == "silent":
                self.server.release.wait(60)
                return
            if count == 2 and model == "fails":
                self._event({"error": {"message": "EngineCore encountered an issue", "code": 500}})
                break
            if count == 2 and model == "aborts":
                self._event({"choices": [{"delta": {}, "finish_reason": "abort"}]})
                break
            if count == 2 and model == "garbage":
                self.wfile.write(b"data: <html>\n\n")
                break
            if count == 2 and model == "endless":
                for _ in range(40):
                    self.wfile.write(b"data: " + b"x" * 2**16)
                break
            self._event({"choices": [{"delta": {"content": word}, **self._logprobs(model, word, request)}]})
        else:
            self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            self._event({"choices": [], "usage": {"completion_tokens": len(words)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _logprobs(self, model: str, word: str, request: dict[str, Any]) -> dict[str, Any]:
        """As vLLM sends them: of a word beyond the basic plane, a token without text comes first."""
        logprob = self.server.logprobs.get(model, {}).get(word)
        if logprob is None or not request.get("logprobs"):
            return {}
        tokens = ["", word] if word > "\uffff" else [word]
        rows = [{**self._named(each, request), "logprob": logprob, "bytes": list(each.encode())} for each in tokens]
        if request.get("top_logprobs"):
            others = self.server.likeliest.get(model, {}).get(word, {})
            rows[-1]["top_logprobs"] = [
                {**self._named(each, request), "logprob": value} for each, value in others.items()
            ]
        return {"logprobs": {"content": rows}}

    def _numbers(self, request: dict[str, Any]) -> bool:
        """Whether it says the numbers of tokens."""
        return bool(self.server.vocabulary and request.get("return_token_ids"))

    def _named(self, word: str, request: dict[str, Any]) -> dict[str, Any]:
        """A token as OpenAI names it; by its number as vLLM does, where it is to and can."""
        if self._numbers(request) and word in self.server.vocabulary:
            name = f"token_id:{self.server.vocabulary.index(word)}"
            return {"token": name, "bytes": list(name.encode())}
        return {"token": word, "bytes": list(word.encode())}

    def _score(self, model: str, request: dict[str, Any]) -> None:
        """A text that is given, as vLLM scores it: the first token has no place before it."""
        if not self.server.scores:
            self._json(400, {"error": {"message": "no completions here"}})
            return
        words = self.server.vocabulary
        likeliest = self.server.likeliest.get(model, {})
        rows: list[Any] = [None]
        for number in request["prompt"][1:]:
            values = likeliest.get(words[number], {}) | {}
            values.setdefault(words[number], -9.0)
            rows.append({words.index(each): {"logprob": it, "decoded_token": each} for each, it in values.items()})
        self._json(200, {"choices": [{"text": "", "prompt_logprobs": rows}]})

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def setup(self) -> None:
        super().setup()
        self.server.sockets.append(self.request)


@contextlib.contextmanager
def fake(port: int = 0, **settings: Any) -> Iterator[Fake]:
    """A running fake server."""
    server = Fake(port)
    for name, value in settings.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


def session_of(pid: int) -> list[psutil.Process]:
    """The living processes of the session that `pid` leads or led."""
    living = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == pid and process.info["status"] != psutil.STATUS_ZOMBIE:
                living.append(process)
        except (ProcessLookupError, PermissionError):
            continue
    return living


def chromium() -> str:
    """The browser's path; without one the test is skipped, or fails where CI says there must be one."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("no chromium on this machine, and CI is set")
    pytest.skip("no chromium on this machine")


CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield running
        running.close()


class Chat:
    """A tab with the page, as a user handles it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.asked: list[str] = []  # every URL the page requested
        self.trouble: list[str] = []
        self.tab = browser.new_page(viewport={"width": 1280, "height": 800})
        self.tab.set_default_timeout(30_000)
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.tab.goto(url)
        self.until_ready()

    def until_ready(self) -> None:
        until(lambda: self.tab.locator("#model input").first.input_value())

    def say(self, text: str) -> None:
        box = self.tab.locator("#box textarea")
        box.fill(text)
        box.press("Enter")

    def choose(self, chooser: str, option: str) -> None:
        self.tab.locator(f"#{chooser} input").first.click()
        self.tab.get_by_role("option", name=option, exact=True).click()

    def set(self, slider: str, value: str) -> None:
        box = self.tab.locator(f"#{slider} input[type=number]")
        box.fill(value)
        box.press("Tab")

    def said(self, which: str = "") -> str:
        """All of the conversation, as it is read; with "-b" that of the second model."""
        return str(self.tab.locator(f"#chat{which}").inner_text())

    def answers(self) -> int:
        """Messages that are not the user's."""
        return int(self.tab.locator("#chat .bot.message").count())

    def status(self, which: str = "") -> str:
        return str(self.tab.locator(f"#status{which}").inner_text())

    def press(self, label: str) -> None:
        self.tab.get_by_role("button", name=label, exact=True).click()

    def can_send(self) -> bool:
        return bool(self.tab.get_by_role("button", name="Send", exact=True).is_visible())


@contextlib.contextmanager
def chat(browser: Any, **settings: Any) -> Iterator[tuple[Chat, Fake]]:
    """The page in front of a fake server."""
    from serve.chat_page import app

    with fake(**settings) as server, app.launch(server.url) as page:
        opened = Chat(browser, page.url)
        yield opened, server
        opened.tab.close()
