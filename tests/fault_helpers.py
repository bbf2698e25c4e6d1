"""A Hub that counts what is sent to it and may answer with an error, and a network in front of it that breaks."""

import contextlib
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import _http
from huggingface_hub.utils._xet import abort_xet_session
from localhub_helpers import api_of, http_of

from hubplugin import localhub
from hubplugin.hub.sending import transfer

# of the Xet client, which otherwise tries for minutes
PATIENCE = {
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    "HF_XET_CLIENT_RETRY_MAX_DURATION": "1s",
}


@dataclass
class Watch:
    """What reaches a hub: [method, path, bytes of the body] of each request. `around` of `localhub.start`."""

    requests: list[tuple[str, str, int]] = field(default_factory=list)
    refuse: Callable[[str, str], int | None] = lambda method, path: None  # a status to answer with, or None
    beside: tuple[tuple[bytes, bytes], ...] = ()  # further headers of a refusal
    after: Callable[[str], None] = lambda path: None  # called between the work of a request and its answer

    def __call__(self, app: Any) -> Any:
        async def watched(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            size = 0

            async def counted() -> Any:
                nonlocal size
                message = await receive()
                size += len(message.get("body", b""))
                return message

            method, path = scope["method"], scope["raw_path"].decode().partition("?")[0]
            status = self.refuse(method, path)
            if status:
                headers = [(b"content-type", b"application/json"), (b"x-error-message", f"refused, {status}".encode())]
                headers += self.beside
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": json.dumps({"error": f"refused, {status}"}).encode()})
            else:

                async def answered(message: Any) -> None:
                    if message["type"] == "http.response.start":
                        self.after(path)
                    await send(message)

                await app(scope, counted, answered)
            self.requests.append((method, path, size))

        return watched

    def clear(self) -> None:
        self.requests.clear()

    def of(self, *parts: str) -> list[tuple[str, str, int]]:
        """The requests whose path holds one of the parts."""
        return [request for request in self.requests if any(part in request[1] for part in parts)]

    @property
    def content(self) -> int:
        """Bytes of large files that arrived: of xorbs, and of LFS objects."""
        return sum(size for _, _, size in self.of("/v1/xorbs/", "/lfs/put/"))

    @property
    def writes(self) -> list[str]:
        """The paths of requests that are meant to change something."""
        reads = ("/api/validate-yaml", "/paths-info/", "/v1/telemetry", "/api/agent-harnesses")
        return [
            path
            for method, path, _ in self.requests
            if method not in ("GET", "HEAD") and not any(part in path for part in reads)
        ]


@dataclass
class Network:
    """A TCP proxy. After `left` bytes to the server, or `back` bytes to the client, every connection breaks."""

    url: str
    left: int | None = None  # None: it holds
    back: int | None = None
    broken: Callable[[], None] = lambda: None  # called once as it breaks
    passed: int = 0  # bytes to the server, ever
    _open: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def mend(self) -> None:
        """From now on it holds."""
        self.left = self.back = None

    def cut_after(self, left: int | None, back: int | None = None) -> None:
        """Break after that many bytes from now, until it is mended."""
        self.left, self.back = left, back

    @property
    def is_broken(self) -> bool:
        return self.left == 0 or self.back == 0

    def _take(self, name: str, wanted: int) -> int:
        """How many of so many bytes pass."""
        with self._lock:
            limit = getattr(self, name)
            passes = wanted if limit is None else min(limit, wanted)
            if self.is_broken:
                return 0
            if limit is not None:
                setattr(self, name, limit - passes)
            if name == "left":
                self.passed += passes
            cut = self.is_broken
        if cut:
            self.broken()
        return passes

    def _pump(self, source: socket.socket, target: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                passes = self._take(name, len(data))
                target.sendall(data[:passes])
                if self.is_broken:
                    self.drop()
                    return
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Reset all connections of this moment."""
        with self._lock:
            gone, self._open[:] = list(self._open), []
        for end in gone:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(self, listener: socket.socket, server: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                if self.is_broken:
                    client.close()
                    continue
                upstream = socket.create_connection(server)
                for end in (client, upstream):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open += [client, upstream]
                for ends in ((client, upstream, "left"), (upstream, client, "back")):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()


@contextmanager
def network(url: str) -> Iterator[Network]:
    """A proxy in front of the hub at this URL, while the block runs."""
    parts = urlsplit(url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = Network(f"http://127.0.0.1:{listener.getsockname()[1]}")
        serving = threading.Thread(target=proxy.serve, args=(listener, (parts.hostname, parts.port)), daemon=True)
        serving.start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)
    proxy.drop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither we nor the client's libraries wait long before they try again; how often they do stays."""
    monkeypatch.setattr(transfer, "WAITS", (0.0,) * len(transfer.WAITS))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    for name, value in PATIENCE.items():
        monkeypatch.setenv(name, value)
    abort_xet_session()  # the next one reads these
    yield
    abort_xet_session()


@dataclass
class Site:
    """A hub that is watched, the network in front of it, and a client that goes around both."""

    watch: Watch
    network: Network
    api: HfApi
    http: httpx.Client
    root: Path

    def tree(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What a repo holds, but for what the Hub itself put there."""
        names = set(self.api.list_repo_files(repo, revision=revision)) - {".gitattributes"}
        url = f"/{repo}/resolve/{quote(revision, safe='')}"
        return {name: self.http.get(f"{url}/{name}").raise_for_status().content for name in names}

    def commits(self, repo: str, revision: str = "main") -> int:
        return len(self.api.list_repo_commits(repo, revision=revision))


@pytest.fixture
def site(tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An embedded Hub behind a network that breaks where a test says so; the environment points there."""
    watch = Watch()
    with localhub.start(tmp_path / "hub", around=watch) as running, network(running.url) as proxy:
        monkeypatch.setenv("HF_ENDPOINT", proxy.url)
        monkeypatch.setenv("HF_TOKEN", running.token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
        with http_of(running) as http:
            yield Site(watch, proxy, api_of(running), http, tmp_path / "hub")


def contents(folder: Path) -> dict[str, bytes]:
    """What a repo should hold."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def small_folder(place: Path, shards: int = 1, size: int = 60_000, seed: int = 0) -> Path:
    """Files as publishing finds them, small ones and `shards` large ones; nothing that a model could be read from."""
    rng = random.Random(seed)
    place.mkdir(parents=True, exist_ok=True)
    names = [f"model-{number}-of-{shards}.safetensors" for number in range(shards)]
    for name in names if shards > 1 else ["model.safetensors"]:
        (place / name).write_bytes(rng.randbytes(size))
    texts = {"config.json": "{}", "report.json": f'{{"seed": {seed}}}', "LICENSE": "Apache License, Version 2.0\n"}
    for name, text in {**texts, "README.md": "---\nlicense: apache-2.0\n---\n# Ours\n"}.items():
        (place / name).write_text(text)
    return place
