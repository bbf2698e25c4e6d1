"""Who may open a page that others can reach: users and passwords from the environment or a file.

Knows no page. Passwords are compared in constant time and named in no error.
"""

import hashlib
import hmac
import os
from collections.abc import Callable
from pathlib import Path

from hubplugin.errors import ServeError
from serve import ports, secret_lines

LOGIN = "HUBPLUGIN_PAGE_LOGIN"
SHAPE = "give user:password"


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
    digests = [_digest(login) for login in logins]

    def known(user: str, password: str) -> bool:
        given = _digest(f"{user.strip()}:{password}")
        # all of them, every time: how long it takes says nothing
        return any([hmac.compare_digest(own, given) for own in digests])

    return known if digests else None


def _digest(login: str) -> bytes:
    return hashlib.sha256(login.encode(errors="surrogatepass")).digest()
