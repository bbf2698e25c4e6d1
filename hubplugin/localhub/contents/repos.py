"""Repos as database rows: model, dataset and space repos with their names and visibility.

Every function works in a transaction that the caller has opened with `store`. What a repo contains is in `git`. This
module knows no HTTP request and no permissions.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from hubplugin.localhub.contents import git
from hubplugin.localhub.contents.git import CommitDetails, Tree
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.timestamps import now

# The kind of a repo is its type in the plural, as in API URLs. JSON bodies hold the singular.
TYPE_OF_KIND = {"models": "model", "datasets": "dataset", "spaces": "space"}
KIND_OF_TYPE = {repo_type: kind for kind, repo_type in TYPE_OF_KIND.items()}


@dataclass(frozen=True)
class Repo:
    """One repo."""

    id: int
    kind: str  # models | datasets | spaces
    name: str  # namespace/name
    private: bool
    gated: str | None  # auto | manual; None: not gated
    created: int  # milliseconds since 1970

    @property
    def namespace(self) -> str:
        """The user or organization in the name."""
        return self.name.split("/")[0]


def _from_row(row: sqlite3.Row) -> Repo:
    return Repo(row["id"], row["kind"], row["name"], bool(row["private"]), row["gated"], row["created"])


def find(db: sqlite3.Connection, kind: str, name: str) -> Repo | None:
    """A repo by its name, whatever the case of the letters."""
    row = db.execute("select * from repo where kind = ? and name = ?", (kind, name)).fetchone()
    return _from_row(row) if row else None


def find_by_former_name(db: sqlite3.Connection, kind: str, name: str) -> Repo | None:
    """A repo by a name that it had before."""
    row = db.execute(
        "select repo.* from repo join former_name on repo.id = former_name.repo "
        "where former_name.kind = ? and former_name.name = ?",
        (kind, name),
    ).fetchone()
    return _from_row(row) if row else None


def rename(db: sqlite3.Connection, repo: Repo, name: str) -> None:
    """Rename a repo. The caller has checked that the name is free."""
    db.execute("update repo set name = ? where id = ?", (name, repo.id))
    db.execute("insert or replace into former_name values (?, ?, ?)", (repo.kind, repo.name, repo.id))


def list_by_kind(db: sqlite3.Connection, kind: str) -> list[Repo]:
    """All repos of one kind, newest first."""
    rows = db.execute("select * from repo where kind = ? order by id desc", (kind,))
    return [_from_row(row) for row in rows]


def create(
    db: sqlite3.Connection,
    kind: str,
    name: str,
    private: bool,
    author: str,
    tree: Tree | None = None,
    title: str = "initial commit",
) -> Repo:
    """A repo with one commit on main. The caller has checked that it does not exist."""
    db.execute("insert into repo (kind, name, private, created) values (?, ?, ?, ?)", (kind, name, private, now()))
    repo = find(db, kind, name)
    assert repo is not None
    git.create_root_commit(db, repo.id, "refs/heads/main", tree or {}, CommitDetails(title, "", author))
    return repo


def add_object(db: sqlite3.Connection, repo_id: int, sha256: str, size: int) -> None:
    """Record that an LFS object was uploaded to a repo. Raises 404 where the repo was deleted meanwhile."""
    if db.execute("select 1 from repo where id = ?", (repo_id,)).fetchone() is None:
        raise http_error(404, "RepoNotFound", "The repo was deleted")
    db.execute("insert or ignore into object values (?, ?, ?)", (repo_id, sha256, size))


def copy_objects(db: sqlite3.Connection, source: Repo, target: Repo, sha256s: Iterable[str]) -> None:
    """Give a repo LFS objects of another one. The caller has checked that the sender may read that one."""
    for sha256 in sha256s:
        add_object(db, target.id, sha256, object_size(db, source, sha256))


def has_object(db: sqlite3.Connection, repo: Repo, sha256: str) -> bool:
    """Whether an LFS object was uploaded to this repo."""
    row = db.execute("select 1 from object where repo = ? and sha256 = ?", (repo.id, sha256)).fetchone()
    return row is not None


def object_size(db: sqlite3.Connection, repo: Repo, sha256: str) -> int:
    """The size of an LFS object that was uploaded to this repo. Raises 400.

    An object that was only uploaded to another repo does not count. Otherwise anybody who knows the hash of a file
    in a private repo could link to it and read it.
    """
    row = db.execute("select size from object where repo = ? and sha256 = ?", (repo.id, sha256)).fetchone()
    if row is None:
        raise http_error(400, "MissingObject", f"The content of {sha256} was never uploaded to {repo.name}")
    return int(row["size"])
