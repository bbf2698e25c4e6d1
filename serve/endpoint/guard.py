"""Who may ask the endpoint, and how much at once. Knows keys and clocks; nothing of models."""

import contextlib
import hashlib
import hmac
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from serve.endpoint.faults import Refused

MIB = 2**20
REMEMBERED = 10_000  # clients whose use is kept in mind; those that have been quiet longest are forgotten


@dataclass(frozen=True)
class Limits:
    """What one client may do; None: no limit. A client is a key, and an address where no keys are asked for."""

    body_bytes: int = 8 * MIB
    at_once: int | None = None  # requests that are being answered
    per_minute: int | None = None  # requests
    tokens: int | None = None  # of one answer


@dataclass
class _Use:
    """One client's."""

    at_once: int = 0
    credit: float = 0.0  # requests that it may send now
    seen: float = 0.0


@dataclass
class Guard:
    """Keys and limits. Without keys whoever reaches the port may ask."""

    keys: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in self.keys]
        self._use: dict[str, _Use] = defaultdict(_Use)

    def client(self, request: web.Request) -> str:
        """Who asks: the number of its key, or its address. Raises Refused for a key that is missing or wrong."""
        if not self._digests:
            return request.remote or ""
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        # all of them, every time: how long it takes says nothing
        found = [number for number, own in enumerate(self._digests) if hmac.compare_digest(own, given)]
        if kind.lower() != "bearer" or not found:
            raise Refused(401, "Incorrect API key, or none: send Authorization: Bearer KEY", "invalid_api_key")
        return f"key {found[0]}"

    @contextlib.contextmanager
    def admitted(self, client: str) -> Iterator[None]:
        """While a request of this client is answered. Raises Refused where it asks too much."""
        self._forget()
        use, now, limits = self._use[client], time.monotonic(), self.limits
        if limits.at_once is not None and use.at_once >= limits.at_once:
            raise Refused(429, f"{limits.at_once} requests at once is the limit", "too_many_at_once", after=1)
        if limits.per_minute is not None:
            use.credit = min(limits.per_minute, use.credit + (now - use.seen) * limits.per_minute / 60)
            if not use.seen:
                use.credit = limits.per_minute
            use.seen = now
            if use.credit < 1:
                wait = (1 - use.credit) * 60 / limits.per_minute
                raise Refused(429, f"{limits.per_minute} requests per minute is the limit", "rate_limited", after=wait)
            use.credit -= 1
        use.seen = now
        use.at_once += 1
        try:
            yield
        finally:
            use.at_once -= 1

    def _forget(self) -> None:
        if len(self._use) > REMEMBERED:
            quiet = sorted((use.seen, client) for client, use in self._use.items() if not use.at_once)
            for _, client in quiet[: REMEMBERED // 2]:
                del self._use[client]


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
