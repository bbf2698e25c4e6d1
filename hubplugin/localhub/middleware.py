"""What happens to every request before routing and to every response after it.

This module knows ASGI messages, and no route.
"""

from collections.abc import Awaitable, Callable, MutableMapping
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


class ErrorCodeMiddleware:
    """Adds X-Error-Code to error responses without one, such as FastAPI's own 404 and 405."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass the request on, and look at the start of the response."""

        async def send_with_code(message: Scope) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                headers = message["headers"] = list(message.get("headers", []))
                if not any(name.lower() == b"x-error-code" for name, _ in headers):
                    headers.append((b"x-error-code", b"NotFound" if message["status"] == 404 else b"BadRequest"))
            await send(message)

        await self.app(scope, receive, send_with_code)
