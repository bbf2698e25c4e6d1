"""What a page's content may reach: a content policy in every response. Knows HTTP headers; no page."""

from typing import Any

from starlette.datastructures import MutableHeaders

# An answer is markdown from a model: it may not fetch an image, a font or a script from anywhere else.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; form-action 'self'"
)


class PolicyHeaders:
    """Adds the content policy to every response. `frames`: who may show the page in a frame of theirs."""

    def __init__(self, app: Any, frames: str = "'self'") -> None:
        self.app, self.policy = app, f"{POLICY}; frame-ancestors {frames}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self.policy
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, guarded)
