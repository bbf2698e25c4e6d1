"""Who may do what: owners of namespaces, private repos, gated repos.

A namespace belongs to the user of that name. A namespace without such a user belongs to the first user who created
something in it. A private repo looks like a missing one to everybody but its owner. This module knows no HTTP
request; `users` authenticates its sender.
"""

import sqlite3
from typing import Literal

from hubplugin.localhub.contents import repos
from hubplugin.localhub.contents.repos import Repo
from hubplugin.localhub.http_errors import http_error, repo_not_found
from hubplugin.localhub.users import User, Users, require_write_role

# view: metadata and list of files; download: content of files; contribute: upload objects, open pull requests.
Permission = Literal["view", "download", "contribute", "write"]


class Access:
    """The permissions of users on namespaces and repos."""

    def __init__(self, users: Users) -> None:
        self._users = users

    def owner(self, db: sqlite3.Connection, namespace: str) -> str | None:
        """The user who owns a namespace; None where nobody does yet."""
        for name in self._users.accounts():
            if name.lower() == namespace.lower():
                return name
        row = db.execute("select owner from namespace where name = ?", (namespace,)).fetchone()
        return row["owner"] if row else None

    def organizations(self, db: sqlite3.Connection, user: User) -> list[str]:
        """The namespaces that a user owns, without the one of their own name."""
        rows = db.execute("select name from namespace where owner = ? order by name", (user.name,))
        return [row["name"] for row in rows if self.owner(db, row["name"]) == user.name != row["name"]]

    def owns(self, db: sqlite3.Connection, user: User | None, namespace: str) -> bool:
        """Whether a user owns a namespace."""
        return user is not None and self.owner(db, namespace) == user.name

    def claim_namespace(self, db: sqlite3.Connection, user: User | None, namespace: str) -> None:
        """Check that a user may create in a namespace; a namespace without owner becomes theirs. Raises 401, 403."""
        user = require_write_role(user)
        owner = self.owner(db, namespace)
        if owner is None:
            db.execute("insert into namespace values (?, ?)", (namespace, user.name))
        elif owner != user.name:
            message = f'You don\'t have the rights to create under the namespace "{namespace}"'
            raise http_error(403, "Forbidden", message)

    def authorize(
        self, db: sqlite3.Connection, user: User | None, kind: str, repo_id: str, permission: Permission
    ) -> Repo:
        """The repo, where the user has the permission. Raises 401, 403 and 404."""
        repo = repos.find(db, kind, repo_id)
        if repo is None and permission == "download":  # links to files outlive a new name
            repo = repos.find_by_former_name(db, kind, repo_id)
        if repo is None or not self.can_view(db, user, repo):
            raise repo_not_found(authenticated=user is not None)
        if permission == "download" and not self.can_download(db, user, repo):
            message = f"Access to {repos.TYPE_OF_KIND[kind]} {repo.name} is restricted"
            message += " and you are not in the authorized list. Ask its owner for access." if user else "."
            message += "" if user else " You must have access to it and be authenticated to access it. Please log in."
            raise http_error(403 if user else 401, "GatedRepo", message)
        if permission in ("contribute", "write"):
            user = require_write_role(user)
        if permission == "write" and not self.owns(db, user, repo.namespace):
            raise http_error(403, "Forbidden", f"You don't have the rights to change {repo.name}")
        return repo

    def can_view(self, db: sqlite3.Connection, user: User | None, repo: Repo) -> bool:
        """Whether a user may know that a repo exists."""
        return not repo.private or self.owns(db, user, repo.namespace)

    def can_download(self, db: sqlite3.Connection, user: User | None, repo: Repo) -> bool:
        """Whether a user may read a repo's files."""
        return self.can_view(db, user, repo) and (not repo.gated or self._passes_gate(db, user, repo))

    def _passes_gate(self, db: sqlite3.Connection, user: User | None, repo: Repo) -> bool:
        """Whether a user owns a gated repo or was granted access to it."""
        if user is None:
            return False
        if self.owns(db, user, repo.namespace):
            return True
        row = db.execute("select status from guest where repo = ? and user = ?", (repo.id, user.name)).fetchone()
        return row is not None and row["status"] == "accepted"
