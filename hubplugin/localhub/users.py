"""User accounts and their access tokens.

Accounts are kept in ROOT/users.json, a mapping of user names to `{"role": "write" | "read", "token_sha256": "..."}`.
The file may be edited while the hub runs. The token of the first user is kept in ROOT/token, which only the owner of
the process can read, unless the token was given to the hub. This module knows no repos; `access` decides what a user
may do with one.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from hubplugin.errors import ServeError
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.validation import RESERVED_NAMESPACES

TOKEN_ENV = "HUBPLUGIN_HUB_TOKEN"
Role = Literal["write", "read"]


class Account(BaseModel):
    """One entry of users.json. Keys that the hub does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    role: Role
    token_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


ACCOUNTS_JSON = TypeAdapter(dict[str, Account])


@dataclass(frozen=True)
class User:
    """The sender of a request with a valid token."""

    name: str
    role: Role


def new_token() -> str:
    """A random token of the Hub's form, which its JavaScript client insists on."""
    return "hf_" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(34))


def hash_token(token: str) -> str:
    """A token as users.json stores it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def first_token(root: Path, token: str | None) -> str:
    """The first user's token: the argument, else HUBPLUGIN_HUB_TOKEN, else ROOT/token.

    ROOT/token is created where it is missing. A token from the first two sources is never written to it.
    """
    given = token or os.environ.get(TOKEN_ENV)
    if given:
        return given
    path = root / "token"
    if not path.exists():
        _write_private(path, f"{new_token()}\n".encode())
    return path.read_text().strip()


def add_user(root: Path, name: str, role: str = "write", token: str | None = None) -> str:
    """Add a user, or change the role and token of an existing one; return the token.

    A running hub notices the change. Raises ServeError for an invalid name or role.
    """
    if not re.fullmatch(r"[A-Za-z0-9](-?[A-Za-z0-9_]){0,38}", name) or name.lower() in RESERVED_NAMESPACES:
        raise ServeError(f"user {name!r}", "is not a valid user name", "use letters, digits and single dashes")
    if role not in ("write", "read"):
        raise ServeError(f"user {name!r}", f"{role!r} is not a role", "use write or read")
    token = token or new_token()
    accounts = read_accounts(root)
    accounts[name] = Account(role=cast(Role, role), token_sha256=hash_token(token))
    _write_private(root / "users.json", ACCOUNTS_JSON.dump_json(accounts, indent=1) + b"\n")
    return token


def _write_private(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def read_accounts(root: Path) -> dict[str, Account]:
    """The accounts by user name; empty where there is no file. Raises ServeError where the file is invalid."""
    path = root / "users.json"
    try:
        return ACCOUNTS_JSON.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ServeError(
            str(path), "is not a valid list of users", "correct it, or delete it and add the users again"
        ) from error


class Users:
    """The accounts of one root folder. Raises ServeError where users.json is invalid at the start."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._version: tuple[int, int] | None = None  # of the file, when it was last read
        self._accounts = read_accounts(root)

    def accounts(self) -> dict[str, Account]:
        """All accounts by user name. The file is read again when it has changed."""
        path = self._root / "users.json"
        version = (path.stat().st_mtime_ns, path.stat().st_ino) if path.exists() else None
        if self._version != version:
            # While somebody edits the file it may be invalid; until then the last valid version applies.
            with contextlib.suppress(ServeError):
                self._accounts = read_accounts(self._root)
                self._version = version
        return self._accounts

    def authenticate(self, authorization: str | None) -> User | None:
        """The user of an Authorization header; None without a header. Raises 401 for an invalid token."""
        if not authorization:
            return None
        scheme, _, token = authorization.partition(" ")
        token_sha256 = hash_token(token.strip())
        user = None
        for name, account in self.accounts().items():  # always all of them, so that timing reveals nothing
            if hmac.compare_digest(account.token_sha256, token_sha256) and scheme.lower() == "bearer":
                user = User(name, account.role)
        if user is None:
            raise http_error(401, "Unauthorized", "Invalid credentials in Authorization header")
        return user


def require_user(user: User | None) -> User:
    """The user of a request that needs a token. Raises 401."""
    if user is None:
        raise http_error(401, "Unauthorized", "You need a token for this")
    return user


def require_write_role(user: User | None) -> User:
    """The user of a request that needs a token with the role write. Raises 401 and 403."""
    user = require_user(user)
    if user.role != "write":
        raise http_error(403, "Forbidden", "This token may read but not write")
    return user
