"""The hub as an ASGI application, and the ways to run it: until ctrl-C, or beside something else."""

import hashlib
import shutil
import socket
import sqlite3
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from hubplugin.errors import ServeError
from hubplugin.localhub import access, api, people, refs, transfer, uploads
from hubplugin.localhub.access import Access
from hubplugin.localhub.call import SLASH, Hub
from hubplugin.localhub.store import Store
from hubplugin.progress import progress

PART_BYTES = 512 * 2**20
Scope = MutableMapping[str, Any]


@dataclass(frozen=True)
class Running:
    """A hub that answers."""

    url: str
    token: str
    user: str
    root: Path


def create_app(root: Path, token: str | None = None, user: str = "local", part_bytes: int = PART_BYTES) -> FastAPI:
    """The application over one root folder, which it holds until `app.state.hub.store.close()`.

    Raises ServeError where the root cannot be used.
    """
    store = Store(root)
    try:
        value = access.first_token(root, token)
        known = access.read_users(root).get(user, {})
        if known.get("token_sha256") != hashlib.sha256(value.encode()).hexdigest():
            access.add_user(root, user, "write", value)
        rights = Access(root)
    except ServeError:
        store.close()
        raise
    xorbs = root / "xorbs"
    # Clients remember chunks by the CAS's address. A new one each run lets the last run's xorbs go.
    shutil.rmtree(xorbs, ignore_errors=True)
    xorbs.mkdir()
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.hub = Hub(store, rights, xorbs, uuid.uuid4().hex, part_bytes)
    app.state.token = value
    for room in (people, refs, uploads, transfer, api):
        app.include_router(room.router)
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _gone)
    for full in (OSError, sqlite3.OperationalError):
        app.add_exception_handler(full, _unstored)
    app.add_middleware(Edge)
    return app


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    body = error.detail if isinstance(error.detail, dict) else {"error": str(error.detail)}
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


def _invalid(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "A parameter is missing or malformed"}, 400, {"X-Error-Code": "BadRequest"})


def _gone(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "The client went away"}, 400, {"X-Error-Code": "BadRequest"})


def _unstored(request: Request, error: Exception) -> JSONResponse:
    progress(f"hub      cannot store: {error}")
    return JSONResponse({"error": "The hub cannot store this now"}, 507, {"X-Error-Code": "Storage"})


class Edge:
    """Keeps escaped slashes apart from those that separate, and sees that every error has a code."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        raw = scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
        if raw:
            scope["path"] = "/".join(unquote(part).replace("/", SLASH) for part in raw.split("/"))

        async def send_coded(message: Scope) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = message["headers"] = list(message.get("headers", []))
                if not any(name.lower() == b"x-error-code" for name, _ in headers):
                    headers.append((b"x-error-code", b"NotFound" if message["status"] == 404 else b"BadRequest"))
            await send(message)

        await self.app(scope, receive, send_coded)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        raise ServeError(f"--host {host}", "is no address of this machine", "use 127.0.0.1") from error
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        why = getattr(error, "strerror", None) or str(error)
        raise ServeError(f"{host}:{port}", f"cannot be listened on: {why}", "free the port or give another") from error
    return listener


def _server(app: FastAPI) -> uvicorn.Server:
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
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{listener.getsockname()[1]}"


def serve(root: Path, host: str = "127.0.0.1", port: int = 8765, token: str | None = None, user: str = "local") -> None:
    """Run a hub until ctrl-C, which ends it cleanly and is raised again as KeyboardInterrupt.

    Raises ServeError where the port or the root cannot be had.
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
        _server(app).run(sockets=[listener])
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
) -> Iterator[Running]:
    """Run a hub in a thread while the block lasts; port 0: a free one. Raises ServeError like `serve`."""
    root = Path(root)
    listener = _listen(host, port)
    try:
        app = create_app(root, token, user, part_bytes)
    except ServeError:
        listener.close()
        raise
    server = _server(app)
    # The socket listens already: whoever connects before the thread has got going waits in its queue.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="localhub", daemon=True)
    thread.start()
    try:
        yield Running(_url(host, listener), app.state.token, user, root)
    finally:
        server.should_exit = True
        thread.join(timeout=15)
        listener.close()
        app.state.hub.store.close()
