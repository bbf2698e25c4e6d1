"""What happens to every request before routing and to every response after it.

This module knows ASGI messages, and no route.
"""

import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

# Replaces an escaped slash (%2F) inside a segment of the URL path. Paths in repos cannot contain this character.
ESCAPED_SLASH = "\x1f"

Scope = MutableMapping[str, Any]
ASGIApp = Callable[..., Awaitable[None]]


class EscapedSlashMiddleware:
    """Keeps an escaped slash inside its path segment, so that a branch named a/b matches `{rev}`.

    ASGI servers unescape the whole path before routing, which makes %2F a separator.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Replace escaped slashes in the path."""
        raw_path = scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
        if scope["type"] == "http" and raw_path:
            segments = [unquote(segment).replace("/", ESCAPED_SLASH) for segment in raw_path.split("/")]
            scope["path"] = "/".join(segments)
        await self.app(scope, receive, send)


class HubHeadersMiddleware:
    """Adds what every response of the Hub has: X-Request-Id, and to an error X-Error-Code and X-Error-Message.

    FastAPI's own 404 and 405 have neither.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass the request on, and look at the start of the response."""

        async def send_with_headers(message: Scope) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = list(message.get("headers", []))
                headers.append((b"x-request-id", secrets.token_hex(12).encode()))
                if message["status"] >= 400:
                    status = HTTPStatus(message["status"])
                    code = b"NotFound" if status == HTTPStatus.NOT_FOUND else b"BadRequest"
                    defaults = {b"x-error-code": code, b"x-error-message": status.phrase.encode()}
                    present = {name.lower() for name, _ in headers}
                    headers += [(name, value) for name, value in defaults.items() if name not in present]
            await send(message)

        await self.app(scope, receive, send_with_headers)
