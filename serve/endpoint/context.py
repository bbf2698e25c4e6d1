"""What is known of a request from its beginning to its end, for its answer's headers and its line in the log."""

import re
import uuid
from dataclasses import dataclass

from aiohttp import web

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")  # of a client's own; anything else gets one of ours


@dataclass
class Context:
    """Of one request."""

    id: str
    client: str = ""  # as the guard calls it; empty until it was admitted
    model: str = ""  # empty until it is known

    @property
    def headers(self) -> dict[str, str]:
        """That every answer has."""
        return {"X-Request-Id": self.id, "X-Content-Type-Options": "nosniff"}


CONTEXT = web.RequestKey("context", Context)


def begin(request: web.Request) -> Context:
    """The context of a request that has just come."""
    given = request.headers.get("X-Request-Id", "")
    request[CONTEXT] = Context(given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
    return request[CONTEXT]
