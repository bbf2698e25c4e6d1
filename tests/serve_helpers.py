"""What the serve tests share: a fake OpenAI server that can also misbehave, a browser, a look at processes."""

import contextlib
import json
import os
import shutil
import socket
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


def until(true: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Poll until `true()` is; fails the test where it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := true():
            return value
        time.sleep(0.02)
    raise AssertionError("it never became true")


def skip_without_kernels(variant: VariantPlan) -> None:
    """Skip a test that has vLLM run a variant whose kernels this machine's CPU cannot run."""
    features = next(verdict.features for verdict in variant.verdicts if verdict.target == "cpu")
    if vllm_settings.find_device() == "cpu" and (missing := cpu_features.missing(features)):
        pytest.skip(f"vLLM's CPU kernels for this variant need {' and '.join(features)}: this CPU has no {missing}")


class Fake(ThreadingHTTPServer):
    """An OpenAI-compatible server. What it does is told by the model's name: see `_Handler.do_POST`."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.models = ["steady"]
        self.listing: Any = None  # what /v1/models answers instead of the models
        self.words = WORDS
        self.pause = 0.0  # seconds between two words
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []  # of GET requests
        self.keys: list[str | None] = []  # of all requests
        self.hung_up = threading.Event()  # a client closed the connection before the answer was complete
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
        if self.path == "/v1/models":
            usual = {"object": "list", "data": [{"id": name} for name in self.server.models]}
            self._json(200, self.server.listing or usual)
        else:
            self._json(404, {"error": {"message": "no such path"}})

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        request = json.loads(self.rfile.read(length))
        self.server.requests.append(request)
        self.server.keys.append(self.headers.get("authorization"))
        model = request["model"]
        if model.startswith("status-"):
            status = int(model.split("-")[1])
            self._json(status, {"error": {"message": request["messages"][-1]["content"], "code": status}})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        try:
            self._answer(model)
        except OSError:
            self.server.hung_up.set()
        self.close_connection = True

    def _answer(self, model: str) -> None:
        self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for count, word in enumerate(self.server.words):
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
            self._event({"choices": [{"delta": {"content": word}}]})
        else:
            self._event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
            self._event({"choices": [], "usage": {"completion_tokens": len(self.server.words)}})
        self.wfile.write(b"data: [DONE]\n\n")

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
