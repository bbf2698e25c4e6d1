"""Who may ask the endpoint, and how much at once. Knows keys and clocks; nothing of models."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from serve import secret_digests
from serve.endpoint.faults import Refused
from serve.rate_limit import RateLimit

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one client may do; None: no limit. A client is a key, and an address where no keys are asked for."""

    body_bytes: int = 8 * MIB
    at_once: int | None = None  # requests that are being answered
    per_minute: int | None = None  # requests
    tokens: int | None = None  # of one answer


@dataclass
class Guard:
    """Keys and limits. Without keys whoever reaches the port may ask."""

    keys: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._digests = secret_digests.digests(self.keys)
        self._at_once = Counter[str]()  # clients whose requests are being answered, and no others
        self._rate = None if self.limits.per_minute is None else RateLimit(self.limits.per_minute)

    def client(self, request: web.Request) -> str:
        """Who asks: the number of its key, or its address. Raises Refused for a key that is missing or wrong."""
        if not self._digests:
            return request.remote or ""
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        number = secret_digests.found(key.strip(), self._digests)
        if kind.lower() != "bearer" or number is None:
            raise Refused(401, "Incorrect API key, or none: send Authorization: Bearer KEY", "invalid_api_key")
        return f"key {number}"

    @contextlib.contextmanager
    def admitted(self, client: str) -> Iterator[None]:
        """While a request of this client is answered. Raises Refused where it asks too much."""
        limits = self.limits
        if limits.at_once is not None and self._at_once[client] >= limits.at_once:
            raise Refused(429, f"{limits.at_once} requests at once is the limit", "too_many_at_once", after=1)
        if self._rate and (wait := self._rate.take(client)):
            raise Refused(429, f"{limits.per_minute} requests per minute is the limit", "rate_limited", after=wait)
        self._at_once[client] += 1
        try:
            yield
        finally:
            self._at_once[client] -= 1
            if not self._at_once[client]:
                del self._at_once[client]


def limit_tokens(body: dict[str, object], path: str, limit: int | None) -> bool:
    """Hold a request's tokens to the limit, which it gets where it names none. Returns whether the body changed.

    Raises Refused where it asks for more, or for something that is no number of tokens.
    """
    if limit is None:
        return False
    names = [
        name for name in ("max_completion_tokens", "max_tokens", "max_output_tokens") if body.get(name) is not None
    ]
    for name in names:
        asked = body[name]
        if not isinstance(asked, int) or isinstance(asked, bool):
            raise Refused(400, f"{name} is no number of tokens", "invalid_value", param=name)
        if asked > limit:
            raise Refused(
                400, f"{name} is {asked}, and {limit} is the limit of this endpoint", "too_many_tokens", param=name
            )
    if not names:
        body["max_output_tokens" if path.endswith("/responses") else "max_tokens"] = limit
    return not names
