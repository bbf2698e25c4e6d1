"""Repos, refs and commits as rows: the part of git that the Hub's API shows.

A commit holds its whole tree and never changes; a ref names a commit. Each function takes an open
transaction of `store`, so whoever calls decides what happens together. This file knows no request and no
rights.
"""

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from hubplugin.localhub.refusal import missing_revision, refuse

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
MAX_PATH = 1024  # bytes
RESERVED = ("api", "models", "datasets", "spaces", "lfs", "xet")  # the first words of other addresses
STALE = "The branch was updated since you opened this page. Please refresh and try again."


@dataclass(frozen=True)
class Entry:
    """A file of a tree."""

    sha256: str  # names the blob
    oid: str  # git's name: sha1 of the blob, or of the pointer file where lfs
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        """What clients name the file by in their cache."""
        return self.sha256 if self.lfs else self.oid


Tree = dict[str, Entry]


@dataclass(frozen=True)
class Repo:
    """One repo. `name` is owner/name; `gated` is auto, manual or None."""

    id: int
    kind: str
    name: str
    private: bool
    gated: str | None
    created: int

    @property
    def owner(self) -> str:
        """The namespace."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Commit:
    """One commit. `date` is milliseconds since 1970."""

    oid: str
    parent: str | None
    tree: Tree
    title: str
    message: str
    author: str
    date: int


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_oid(data: bytes) -> str:
    """git's hash of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def check_path(path: Any) -> str:
    """A path inside a repo that is safe on every client's disk. Raises 422."""
    ok = isinstance(path, str) and 0 < len(path.encode("utf-8", "surrogatepass")) <= MAX_PATH
    ok = ok and not re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]", path)
    if not ok or any(part in ("", ".", "..") or part.lower() == ".git" for part in path.split("/")):
        raise refuse(422, "InvalidPath", f"Invalid path: {path!r}")
    return path


def check_repo_name(name: Any) -> str:
    """A repo id with its owner. Raises 422."""
    ok = isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", name, re.ASCII)
    bad = not ok or "--" in name or ".." in name or name.split("/")[0].lower() in RESERVED
    if bad or any(part.endswith((".git", "-", ".")) for part in name.split("/")):
        raise refuse(422, "InvalidRepoName", f"Invalid repo name: {name!r}")
    return name


def check_ref_name(name: Any) -> str:
    """A branch or tag name that git would take and that no commit hash can be mistaken for. Raises 422."""
    ok = isinstance(name, str) and re.fullmatch(r"[\w][\w./+-]{0,199}", name, re.ASCII)
    bad = not ok or re.search(r"\.\.|//|/\.|\.lock(/|$)|[./]$|^refs/|^HEAD$|^[0-9a-f]{40}$", name)
    if bad:
        raise refuse(422, "InvalidRefName", f"Invalid reference name: {name!r}")
    return name


def find(db: sqlite3.Connection, kind: str, name: str) -> Repo | None:
    """A repo by its id, whatever the case of the letters."""
    return next(iter(select(db, "kind = ? and name = ?", kind, name)), None)


def select(db: sqlite3.Connection, where: str, *values: Any) -> list[Repo]:
    """Repos that fit a condition written here, never by a client."""
    rows = db.execute(f"select * from repo where {where} order by id desc", values)
    return [Repo(r["id"], r["kind"], r["name"], bool(r["private"]), r["gated"], r["created"]) for r in rows]


def create(db: sqlite3.Connection, kind: str, name: str, private: bool, author: str) -> Repo:
    """A repo with one empty commit on main. The caller has checked that it does not exist."""
    db.execute("insert into repo (kind, name, private, created) values (?, ?, ?, ?)", (kind, name, private, now()))
    repo = find(db, kind, name)
    assert repo is not None
    first = _write(db, repo, None, {}, "initial commit", "", author)
    set_ref(db, repo, "refs/heads/main", first.oid)
    return repo


def refs(db: sqlite3.Connection, repo: Repo, prefix: str) -> dict[str, str]:
    """Names below a prefix such as refs/heads/, and the commits they stand for."""
    rows = db.execute("select name, oid from ref where repo = ? order by name", (repo.id,))
    return {r["name"].removeprefix(prefix): r["oid"] for r in rows if r["name"].startswith(prefix)}


def set_ref(db: sqlite3.Connection, repo: Repo, ref: str, oid: str) -> None:
    """Create or move a ref."""
    db.execute("insert or replace into ref values (?, ?, ?)", (repo.id, ref, oid))


def ref_of(db: sqlite3.Connection, repo: Repo, revision: str) -> str | None:
    """The full name of the ref that a revision names, if it names one. Branches come before tags."""
    revision = "main" if revision == "HEAD" else revision
    for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
        if db.execute("select 1 from ref where repo = ? and name = ?", (repo.id, ref)).fetchone():
            return ref
    return None


def resolve(db: sqlite3.Connection, repo: Repo, revision: str) -> Commit:
    """The commit that a branch, tag, ref, HEAD, or full or short hash stands for. Raises 404."""
    ref = ref_of(db, repo, revision)
    if ref:
        oid = db.execute("select oid from ref where repo = ? and name = ?", (repo.id, ref)).fetchone()[0]
        return get(db, repo, oid)
    if re.fullmatch(r"[0-9a-f]{7,40}", revision):
        found = db.execute(
            "select oid from revision where repo = ? and substr(oid, 1, ?) = ?",
            (repo.id, len(revision), revision),
        ).fetchall()
        if len(found) == 1:
            return get(db, repo, found[0][0])
    raise missing_revision(revision)


def get(db: sqlite3.Connection, repo: Repo, oid: str) -> Commit:
    """A commit that is known to exist."""
    row = db.execute("select * from revision where repo = ? and oid = ?", (repo.id, oid)).fetchone()
    tree = {path: Entry(*fields) for path, fields in json.loads(row["tree"]).items()}
    return Commit(oid, row["parent"], tree, row["title"], row["message"], row["author"], row["date"])


def history(db: sqlite3.Connection, repo: Repo, commit: Commit) -> Iterator[Commit]:
    """A commit and those before it, newest first."""
    yield commit
    while commit.parent:
        commit = get(db, repo, commit.parent)
        yield commit


def last_changes(db: sqlite3.Connection, repo: Repo, head: Commit, paths: set[str]) -> dict[str, Commit]:
    """For each path (a file or a folder) the newest commit that changed it."""
    changed: dict[str, Commit] = {}
    newer: Commit | None = None

    def note(commit: Commit, before: Tree) -> None:
        for path in {p for p in commit.tree.keys() | before.keys() if commit.tree.get(p) != before.get(p)}:
            parts = path.split("/")
            for count in range(1, len(parts) + 1):
                changed.setdefault("/".join(parts[:count]), commit)

    for commit in history(db, repo, head):
        if newer is not None:
            note(newer, commit.tree)
        newer = commit
        if paths <= changed.keys():
            return changed
    assert newer is not None
    note(newer, {})
    return changed


def commit(
    db: sqlite3.Connection,
    repo: Repo,
    ref: str,
    change: Callable[[Tree], Tree],
    title: str,
    message: str,
    author: str,
    parent: str | None = None,
) -> Commit:
    """Put one commit on a ref, given by its full name.

    Raises 412 where `parent`, a hash in full or its beginning, is no longer the head.
    """
    head = resolve(db, repo, ref)
    if parent and not head.oid.startswith(parent):
        raise refuse(412, "Conflict", STALE)
    tree = change(dict(head.tree))
    folders = {path.rsplit("/", count)[0] for path in tree for count in range(1, path.count("/") + 1)}
    both = folders & tree.keys()
    if both:
        raise refuse(422, "InvalidPath", f"{min(both)!r} would be a file and a folder")
    made = _write(db, repo, head.oid, tree, title, message, author)
    set_ref(db, repo, ref, made.oid)
    return made


def _write(
    db: sqlite3.Connection, repo: Repo, parent: str | None, tree: Tree, title: str, message: str, author: str
) -> Commit:
    text = json.dumps({path: list(asdict(entry).values()) for path, entry in sorted(tree.items())})
    date = now()
    name = json.dumps([repo.id, parent, text, title, message, author, date, time.time_ns()])
    oid = hashlib.sha1(name.encode("utf-8", "surrogatepass")).hexdigest()
    db.execute(
        "insert into revision values (?, ?, ?, ?, ?, ?, ?, ?)",
        (repo.id, oid, parent, text, title, message, author, date),
    )
    return Commit(oid, parent, tree, title, message, author, date)


def add_object(db: sqlite3.Connection, repo: int, sha256: str, size: int) -> None:
    """Note that a stored object was uploaded to a repo. Raises 404."""
    if not select(db, "id = ?", repo):
        raise refuse(404, "RepoNotFound", "The repo is gone")
    db.execute("insert or ignore into object values (?, ?, ?)", (repo, sha256, size))
