"""Who is asking, and what they may do: users and their tokens, owners, private and gated repos.

Users stand in ROOT/users.json, a mapping of names to `{"role": "write" | "read", "token_sha256": "..."}`;
the file may be edited while the hub runs. The token of the hub's first user lies in ROOT/token, readable
by nobody else on this machine, unless it was given. A namespace belongs to the user of that name, else to
whoever first made something in it. A stranger to a private repo hears what someone asking for a missing
one hears.
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hubplugin.errors import ServeError
from hubplugin.localhub import repos
from hubplugin.localhub.refusal import refuse
from hubplugin.localhub.repos import Repo

TOKEN_ENV = "HUBPLUGIN_HUB_TOKEN"
Right = Literal["see", "files", "propose", "write"]


@dataclass(frozen=True)
class User:
    """Somebody with a valid token."""

    name: str
    role: str  # write | read


def first_token(root: Path, token: str | None) -> str:
    """The token of the hub's first user: given, else from the environment, else kept in ROOT/token.

    It is made there once. A token that was given is not written down.
    """
    given = token or os.environ.get(TOKEN_ENV)
    if given:
        return given
    path = root / "token"
    if not path.exists():
        _write_private(path, secrets.token_urlsafe(24) + "\n")
    return path.read_text().strip()


def add_user(root: Path, name: str, role: str = "write", token: str | None = None) -> str:
    """Add a user, or give one another role and token; the token. A running hub sees it at once.

    Raises ServeError for a name or a role that cannot be.
    """
    if not re.fullmatch(r"[A-Za-z0-9](-?[A-Za-z0-9_]){0,38}", name) or name.lower() in repos.RESERVED:
        raise ServeError(f"user {name!r}", "is no name for a user", "use letters, digits and single dashes")
    if role not in ("write", "read"):
        raise ServeError(f"user {name!r}", f"{role!r} is no role", "use write or read")
    token = token or secrets.token_urlsafe(24)
    users = read_users(root)
    users[name] = {"role": role, "token_sha256": hashlib.sha256(token.encode()).hexdigest()}
    _write_private(root / "users.json", json.dumps(users, indent=1) + "\n")
    return token


def _write_private(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    os.replace(part, path)


def read_users(root: Path) -> dict[str, dict[str, str]]:
    """The users of a root by name; none where there is no file. Raises ServeError where it is broken."""
    path = root / "users.json"
    try:
        users = json.loads(path.read_text())
        if all(re.fullmatch(r"[0-9a-f]{64}:(write|read)", f"{u['token_sha256']}:{u['role']}") for u in users.values()):
            return users
        problem = "holds a user whose role or token_sha256 is none"
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        problem = "is not a list of users"
    raise ServeError(str(path), problem, "mend it, or delete it and add the users again")


class Access:
    """The rights of users on the repos of one root. Raises ServeError where its list of users is broken."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: tuple[int, int] | None = None
        self._users = read_users(root)

    def users(self) -> dict[str, dict[str, str]]:
        """All users by name, read again when the file has changed."""
        path = self.root / "users.json"
        seen = (path.stat().st_mtime_ns, path.stat().st_ino) if path.exists() else None
        if self._seen != seen:
            with contextlib.suppress(ServeError):  # somebody is in the middle of editing it: the last good list holds
                self._users = read_users(self.root)
                self._seen = seen
        return self._users

    def user(self, authorization: str | None) -> User | None:
        """Who sent a header; None for nobody. Raises 401 for a token that is not ours."""
        if not authorization:
            return None
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for name, row in self.users().items():  # all of them: the time taken tells nothing
            if hmac.compare_digest(row["token_sha256"], digest) and scheme.lower() == "bearer":
                found = User(name, row["role"])
        if found is None:
            raise refuse(401, "Unauthorized", "Invalid credentials in Authorization header")
        return found

    def owner(self, db: sqlite3.Connection, namespace: str) -> str | None:
        """The user whom a namespace belongs to."""
        for name in self.users():
            if name.lower() == namespace.lower():
                return name
        row = db.execute("select owner from namespace where name = ?", (namespace,)).fetchone()
        return row["owner"] if row else None

    def namespaces(self, db: sqlite3.Connection, user: User) -> list[str]:
        """The namespaces beside their own name that belong to a user."""
        rows = db.execute("select name from namespace where owner = ? order by name", (user.name,))
        return [row["name"] for row in rows if self.owner(db, row["name"]) == user.name != row["name"]]

    def owns(self, db: sqlite3.Connection, user: User | None, namespace: str) -> bool:
        """Whether a namespace is this user's."""
        return user is not None and self.owner(db, namespace) == user.name

    def claim(self, db: sqlite3.Connection, user: User | None, namespace: str) -> None:
        """Let a user make things in a namespace, taking it where it is nobody's yet. Raises 401 and 403."""
        user = writer(user)
        owner = self.owner(db, namespace)
        if owner is None:
            db.execute("insert into namespace values (?, ?)", (namespace, user.name))
        elif owner != user.name:
            raise refuse(403, "Forbidden", f'You don\'t have the rights to create under the namespace "{namespace}"')

    def repo(self, db: sqlite3.Connection, user: User | None, kind: str, name: str, right: Right) -> Repo:
        """A repo that the user has a right to.

        `see` its list of files; read its `files`; `propose` a change (upload, pull request); or `write`.
        Raises 401, 403 and 404.
        """
        repo = repos.find(db, kind, name)
        if repo is None or not self.may_see(db, user, repo):
            raise missing_repo(user)
        if right == "files" and not self.may_read(db, user, repo):
            why = f"Access to {repos.KINDS[kind]} {repo.name} is restricted"
            raise refuse(403 if user else 401, "GatedRepo", f"{why}. You must have access to it and be authenticated.")
        if right in ("propose", "write"):
            user = writer(user)
        if right == "write" and not self.owns(db, user, repo.owner):
            raise refuse(403, "Forbidden", f"You don't have the rights to change {repo.name}")
        return repo

    def may_see(self, db: sqlite3.Connection, user: User | None, repo: Repo) -> bool:
        """Whether a user may know that a repo exists."""
        return not repo.private or self.owns(db, user, repo.owner)

    def may_read(self, db: sqlite3.Connection, user: User | None, repo: Repo) -> bool:
        """Whether a user may read a repo's files."""
        return self.may_see(db, user, repo) and (not repo.gated or self.admitted(db, user, repo))

    def admitted(self, db: sqlite3.Connection, user: User | None, repo: Repo) -> bool:
        """Whether the gate of a gated repo is open for a user."""
        if user is None or self.owns(db, user, repo.owner):
            return user is not None
        row = db.execute("select status from guest where repo = ? and user = ?", (repo.id, user.name)).fetchone()
        return row is not None and row["status"] == "accepted"


def writer(user: User | None) -> User:
    """A user whose token may write. Raises 401 and 403."""
    if user is None:
        raise refuse(401, "Unauthorized", "You need a token for this")
    if user.role != "write":
        raise refuse(403, "Forbidden", "This token may read but not write")
    return user


def missing_repo(user: User | None) -> Exception:
    """What a repo that does not exist, or that is nobody's business, looks like."""
    if user is None:
        return refuse(401, "RepoNotFound", "Invalid username or password.")
    return refuse(404, "RepoNotFound", "Repository not found")
