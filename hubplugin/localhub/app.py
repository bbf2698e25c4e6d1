"""The hub as a FastAPI application over one root folder: its state, routers, exception handlers and middleware.

This module knows no socket; `server` runs the application.
"""

import shutil
import sqlite3
import uuid
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from hubplugin.errors import ServeError
from hubplugin.localhub import users
from hubplugin.localhub.access import Access
from hubplugin.localhub.dependencies import Hub
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.middleware import EscapedSlashMiddleware, HubHeadersMiddleware
from hubplugin.localhub.routers import ROUTERS
from hubplugin.localhub.store import Store
from hubplugin.localhub.users import Users
from hubplugin.progress import progress

PART_BYTES = 512 * 2**20


def create_app(root: Path, token: str | None = None, user: str = "local", part_bytes: int = PART_BYTES) -> FastAPI:
    """The application over one root folder, which it locks until `app.state.hub.store.close()`.

    Raises ServeError where the root cannot be used.
    """
    store = Store(root)
    try:
        token = users.first_token(root, token)
        account = users.read_accounts(root).get(user)
        if account is None or account.token_sha256 != users.hash_token(token):
            users.add_user(root, user, "write", token)
        hub_users = Users(root)
    except ServeError:
        store.close()
        raise
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    # Xet clients remember, by the CAS URL, which chunks they have uploaded. The run id makes it a new URL, so
    # that they do not count on the xorbs of an earlier run.
    app.state.hub = Hub(
        store, hub_users, Access(hub_users), _empty_folder(root / "xorbs"), uuid.uuid4().hex, part_bytes
    )
    app.state.token = token
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(HTTPException, _http_error_response)
    app.add_exception_handler(RequestValidationError, _validation_error_response)
    app.add_exception_handler(ClientDisconnect, _disconnect_response)
    app.add_exception_handler(OSError, _storage_error_response)
    app.add_exception_handler(sqlite3.OperationalError, _storage_error_response)
    app.add_middleware(EscapedSlashMiddleware)
    app.add_middleware(HubHeadersMiddleware)
    return app


def _empty_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def _http_error_response(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    body = error.detail if isinstance(error.detail, dict) else {"error": str(error.detail)}
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


def _validation_error_response(request: Request, error: Exception) -> JSONResponse:
    return _http_error_response(request, http_error(400, "BadRequest", "A parameter is missing or malformed"))


def _disconnect_response(request: Request, error: Exception) -> JSONResponse:
    return _http_error_response(request, http_error(400, "BadRequest", "The client closed the connection"))


def _storage_error_response(request: Request, error: Exception) -> JSONResponse:
    progress(f"hub      cannot store: {error}")
    return _http_error_response(request, http_error(507, "Storage", "The hub cannot store this now"))
