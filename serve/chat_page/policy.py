"""What the chat page's content may reach: a content policy in every response. Knows HTTP headers; no page."""

from typing import Any

from starlette.datastructures import MutableHeaders

# An answer is markdown from a model: it may not fetch an image, a font or a script from anywhere else.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'"
)


class PolicyHeaders:
    """Adds the content policy to every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, guarded)
