"""What goes wrong, as OpenAI's API says it: a status, and one object under "error". Knows no engine."""

import json
from typing import Any

from aiohttp import web


class Refused(Exception):
    """A request that is not passed on, or was not answered."""

    def __init__(self, status: int, message: str, code: str, *, param: str | None = None, after: float | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.after = after  # seconds until it may be tried again

    @property
    def body(self) -> dict[str, Any]:
        """As it is sent."""
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status == 401:
            kind = "authentication_error"
        else:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        """The whole answer."""
        headers = {} if self.after is None else {"Retry-After": str(max(1, round(self.after)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return web.json_response(self.body, status=self.status, headers=headers)

    def event(self) -> bytes:
        """The end of a stream that has already begun."""
        return b"data: " + json.dumps(self.body).encode() + b"\n\ndata: [DONE]\n\n"


def unknown_model(name: str, known: list[str]) -> Refused:
    """404 with the names that there are."""
    message = f"The model {name!r} does not exist. This endpoint has: {', '.join(known)}"
    return Refused(404, message, "model_not_found", param="model")
