"""A Hub that counts what is sent to it and may answer with an error, and a network in front of it that breaks."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Watch:
    """What reaches a hub: [method, path, bytes of the body] of each request. `around` of `localhub.start`."""

    requests: list[tuple[str, str, int]] = field(default_factory=list)
    refuse: Callable[[str, str], int | None] = lambda method, path: None  # a status to answer with, or None

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
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": json.dumps({"error": f"refused, {status}"}).encode()})
            else:
                await app(scope, counted, send)
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
