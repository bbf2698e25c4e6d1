"""Two ways to run the hub with uvicorn: until ctrl-C, or in a thread while a block of code runs.

This module knows sockets and threads; `app` is what it runs.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from hubplugin.errors import ServeError
from hubplugin.localhub.app import PART_BYTES, create_app
from hubplugin.localhub.middleware import ASGIApp
from hubplugin.progress import progress


@dataclass(frozen=True)
class Running:
    """A running hub."""

    url: str
    token: str
    user: str
    root: Path


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        raise ServeError(f"--host {host}", "is not an address of this machine", "use 127.0.0.1") from error
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ServeError(
            f"{host}:{port}", f"cannot be listened on: {reason}", "free the port or give another"
        ) from error
    return listener


def _uvicorn_server(app: FastAPI | ASGIApp) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=3,
            server_header=False,
        )
    )


def _url(host: str, listener: socket.socket) -> str:
    """A URL that a client on this machine can use."""
    url_host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{url_host}:{listener.getsockname()[1]}"


def serve(root: Path, host: str = "127.0.0.1", port: int = 8765, token: str | None = None, user: str = "local") -> None:
    """Run a hub until ctrl-C, which shuts it down cleanly and is raised again as KeyboardInterrupt.

    Raises ServeError where the port or the root cannot be used.
    """
    root = Path(root)
    listener = _listen(host, port)
    try:
        app = create_app(root, token, user)
    except ServeError:
        listener.close()
        raise
    progress(f"hub      {_url(host, listener)}   root {root}   user {user}   token in {root / 'token'}")
    try:
        _uvicorn_server(app).run(sockets=[listener])
    finally:
        listener.close()
        app.state.hub.store.close()


@contextmanager
def start(
    root: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    user: str = "local",
    part_bytes: int = PART_BYTES,
    around: Callable[[ASGIApp], ASGIApp] | None = None,
) -> Iterator[Running]:
    """Run a hub in a thread while the block runs; port 0 means a free port. Raises ServeError like `serve`.

    `around` wraps the application: tests count requests there, or answer some of them in its place.
    """
    root = Path(root)
    listener = _listen(host, port)
    try:
        app = create_app(root, token, user, part_bytes)
    except ServeError:
        listener.close()
        raise
    server = _uvicorn_server(around(app) if around else app)
    # The socket listens already, so a client that connects before the thread is ready waits in its queue.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="localhub", daemon=True)
    thread.start()
    try:
        yield Running(_url(host, listener), app.state.token, user, root)
    finally:
        server.should_exit = True
        thread.join(timeout=15)
        listener.close()
        app.state.hub.store.close()
