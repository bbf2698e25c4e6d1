"""Who may open a page that others can reach: users and passwords from the environment or a file, and how often wrong
ones may be tried.

Knows no page. Passwords are compared in constant time and named in no error.
"""

import ipaddress
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hubplugin.errors import ServeError
from serve import ports, secret_digests, secret_lines
from serve.rate_limit import RateLimit

LOGIN = "HUBPLUGIN_PAGE_LOGIN"
SHAPE = "give user:password"
FAILURES = 5  # a minute, from one address
# On the page of the login, which says nothing of its own when it is refused with 429.
HINT = f"After {FAILURES} wrong logins within a minute, wait {60 // FAILURES} seconds before each further one."


def read(file: Path | None = None) -> tuple[str, ...]:
    """Logins as user:password, one per line of a file, and that of the environment. Raises ServeError where one is
    none, or the file has none."""
    found = [(LOGIN, os.environ[LOGIN])] if os.environ.get(LOGIN) else []
    if file is not None:
        own = secret_lines.read(file, "login", f"{SHAPE}, one per line")
        found += [(f"{file}, line {number}", line) for number, line in own]
    return tuple(_sound(where, line.strip()) for where, line in found)


def _sound(where: str, login: str) -> str:
    user, _, password = login.partition(":")
    if not user.strip() or not password:
        raise ServeError(where, "is no login", SHAPE)
    return f"{user.strip()}:{password}"


def refuse_unguarded(host: str, logins: tuple[str, ...], *, unguarded: bool) -> None:
    """Raise ServeError where others could open the page without a login, and nobody said that they may."""
    if not ports.is_loopback(host) and not logins and not unguarded:
        what = "is not loopback, and no login is asked for: whoever reaches the port could use the page"
        raise ServeError(host, what, f"set {LOGIN} to user:password, give --logins FILE, or say --open")


def check(logins: tuple[str, ...]) -> Callable[[str, str], bool] | None:
    """What says whether a user and a password are a login; None where everybody may open the page."""
    digests = secret_digests.digests(logins)

    def known(user: str, password: str) -> bool:
        return secret_digests.found(f"{user.strip()}:{password}", digests) is not None

    return known if digests else None


class LoginLimit:
    """Middleware that answers 429 where one address has tried too many wrong logins: Gradio tells what checks a login
    no address. Every try takes of what the address may, and a login that is right gives it back.
    """

    def __init__(self, app: Any, limit: RateLimit | None = None) -> None:
        self.app, self.limit = app, limit or RateLimit(FAILURES)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith("/login"):
            await self.app(scope, receive, send)
            return
        address = _address(scope.get("client"))
        if wait := self.limit.take(address):
            await _refuse(wait, send)
            return

        async def seen(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self.limit.give_back(address)
            await send(message)

        await self.app(scope, receive, seen)


def _address(client: tuple[str, int] | None) -> str:
    """Whom a limit is for: an IPv4 address, or the 64 bits of an IPv6 one that a provider gives to one customer."""
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0] if client else "")
    except ValueError:
        return ""  # a socket without addresses: all of its clients are one
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((int(address), 64), strict=False))


async def _refuse(wait: float, send: Any) -> None:
    seconds = math.ceil(wait)
    body = json.dumps({"detail": f"Too many wrong logins: try again in {seconds} s."}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "retry-after": str(seconds)}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 429, "headers": raw})
    await send({"type": "http.response.body", "body": body})
