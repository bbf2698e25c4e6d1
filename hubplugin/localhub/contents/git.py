"""Refs, commits and trees as database rows: the part of git that the Hub's API shows.

A commit stores its whole tree and never changes; a ref points to a commit. Only `remove_lfs_files` replaces commits.
Every function works in a transaction that the caller has opened with `store`. This module knows a repo only by its row
id: no names, no permissions, no HTTP request.
"""

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from hubplugin.localhub.http_errors import http_error, revision_not_found
from hubplugin.localhub.timestamps import now

MAX_REVISION_LENGTH = 256
STALE_PARENT = "The branch was updated since you opened this page. Please refresh and try again."  # the Hub's words


@dataclass(frozen=True)
class TreeEntry:
    """A file in a tree."""

    sha256: str  # of the content; the name of the blob in the store
    oid: str  # git's sha1 of the blob; of the pointer file for an LFS file
    size: int  # bytes of the content
    lfs: bool

    @property
    def etag(self) -> str:
        """The name of the content in a client's cache."""
        return self.sha256 if self.lfs else self.oid

    @property
    def pointer_size(self) -> int:
        """Bytes of an LFS file's pointer file."""
        return len(lfs_pointer(self.sha256, self.size))


Tree = dict[str, TreeEntry]  # by path


@dataclass(frozen=True)
class CommitDetails:
    """What a commit says about itself."""

    title: str
    message: str
    author: str


@dataclass(frozen=True)
class Commit:
    """One commit."""

    oid: str
    parent: str | None
    tree: Tree
    title: str
    message: str
    author: str
    date: int  # milliseconds since 1970


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The pointer file that git stores in place of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def blob_oid(data: bytes) -> str:
    """git's hash of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


# Refs


def list_refs(db: sqlite3.Connection, repo_id: int, prefix: str) -> dict[str, str]:
    """The refs with a prefix such as refs/heads/: name without the prefix -> oid of the commit."""
    rows = db.execute("select name, oid from ref where repo = ? order by name", (repo_id,))
    return {row["name"].removeprefix(prefix): row["oid"] for row in rows if row["name"].startswith(prefix)}


def set_ref(db: sqlite3.Connection, repo_id: int, ref: str, oid: str) -> None:
    """Create or move a ref."""
    db.execute("insert or replace into ref values (?, ?, ?)", (repo_id, ref, oid))


def delete_ref(db: sqlite3.Connection, repo_id: int, ref: str) -> None:
    """Delete a ref; its commits stay."""
    db.execute("delete from ref where repo = ? and name = ?", (repo_id, ref))


def find_ref(db: sqlite3.Connection, repo_id: int, revision: str) -> str | None:
    """The full name of the ref that a revision means; None where it means none. Branches come before tags."""
    revision = "main" if revision == "HEAD" else revision
    for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
        if db.execute("select 1 from ref where repo = ? and name = ?", (repo_id, ref)).fetchone():
            return ref
    return None


# Commits


def find_oid(db: sqlite3.Connection, repo_id: int, revision: str) -> str | None:
    """The oid of a branch, tag, full ref name, HEAD, or full or short commit hash; None where there is none."""
    ref = find_ref(db, repo_id, revision)
    if ref:
        row = db.execute("select oid from ref where repo = ? and name = ?", (repo_id, ref)).fetchone()
        return str(row["oid"])
    if re.fullmatch(r"[0-9a-f]{7,40}", revision):
        matches = db.execute(
            "select oid from revision where repo = ? and substr(oid, 1, ?) = ?",
            (repo_id, len(revision), revision),
        ).fetchall()
        if len(matches) == 1:
            return str(matches[0]["oid"])
    return None


def resolve(db: sqlite3.Connection, repo_id: int, revision: str) -> Commit:
    """The commit of a revision, as `find_oid` understands it. Raises 404."""
    oid = find_oid(db, repo_id, revision)
    if oid is None:
        raise revision_not_found(revision)
    return get_commit(db, repo_id, oid)


def split_revision(db: sqlite3.Connection, repo_id: int, path: str, escaped_slash: str) -> tuple[str, str]:
    """The revision at the beginning of a URL path, and the rest. The slashes in its name may be escaped or not.

    The shortest beginning that is a revision wins; where none is, the first segment is taken for one.
    """
    segments = path.split("/")
    for count in range(1, len(segments) + 1):
        revision = "/".join(segments[:count]).replace(escaped_slash, "/")
        if len(revision) > MAX_REVISION_LENGTH:
            break
        if find_oid(db, repo_id, revision):
            return revision, "/".join(segments[count:]).replace(escaped_slash, "/")
    return segments[0].replace(escaped_slash, "/"), "/".join(segments[1:]).replace(escaped_slash, "/")


def get_commit(db: sqlite3.Connection, repo_id: int, oid: str) -> Commit:
    """A commit that is known to exist."""
    row = db.execute("select * from revision where repo = ? and oid = ?", (repo_id, oid)).fetchone()
    tree = {path: TreeEntry(*fields) for path, fields in json.loads(row["tree"]).items()}
    return Commit(oid, row["parent"], tree, row["title"], row["message"], row["author"], row["date"])


def history(db: sqlite3.Connection, repo_id: int, commit: Commit) -> Iterator[Commit]:
    """A commit and its ancestors, newest first."""
    yield commit
    while commit.parent:
        commit = get_commit(db, repo_id, commit.parent)
        yield commit


def log(db: sqlite3.Connection, repo_id: int, oid: str) -> list[sqlite3.Row]:
    """What a commit and its ancestors say about themselves, newest first, without their trees."""
    query = """
        with recursive log (oid, age) as (
            select ?2, 0 union all
            select parent, age + 1 from revision join log using (oid) where repo = ?1 and parent is not null)
        select oid, parent, title, message, author, date from revision join log using (oid) where repo = ?1 order by age
    """
    return db.execute(query, (repo_id, oid)).fetchall()


def last_commits(db: sqlite3.Connection, repo_id: int, head: Commit, paths: set[str]) -> dict[str, Commit]:
    """For each path of a file or folder the newest commit that changed it."""
    changed_by: dict[str, Commit] = {}
    newer: Commit | None = None

    def record_changes(commit: Commit, parent_tree: Tree) -> None:
        all_paths = commit.tree.keys() | parent_tree.keys()
        for path in {path for path in all_paths if commit.tree.get(path) != parent_tree.get(path)}:
            parts = path.split("/")
            for depth in range(1, len(parts) + 1):
                changed_by.setdefault("/".join(parts[:depth]), commit)

    for commit in history(db, repo_id, head):
        if newer is not None:
            record_changes(newer, commit.tree)
        newer = commit
        if paths <= changed_by.keys():
            return changed_by
    assert newer is not None
    record_changes(newer, {})
    return changed_by


def create_root_commit(db: sqlite3.Connection, repo_id: int, ref: str, tree: Tree, details: CommitDetails) -> Commit:
    """A commit without parent, to which the ref then points. Raises 422 like `create_commit`."""
    _check_folders(tree)
    commit = _insert_commit(db, repo_id, None, tree, details)
    set_ref(db, repo_id, ref, commit.oid)
    return commit


def create_commit(
    db: sqlite3.Connection, repo_id: int, ref: str, change_tree: Callable[[Tree], Tree], details: CommitDetails
) -> Commit:
    """Add a commit to a ref, given by its full name. `change_tree` turns a copy of the head's tree into the new tree.

    Raises 422 where a path would be a file and a folder.
    """
    head = resolve(db, repo_id, ref)
    tree = change_tree(dict(head.tree))
    _check_folders(tree)
    commit = _insert_commit(db, repo_id, head.oid, tree, details)
    set_ref(db, repo_id, ref, commit.oid)
    return commit


def _check_folders(tree: Tree) -> None:
    folders = {path.rsplit("/", count)[0] for path in tree for count in range(1, path.count("/") + 1)}
    if folders & tree.keys():
        raise http_error(422, "InvalidPath", f"{min(folders & tree.keys())!r} would be a file and a folder")


def check_parent(db: sqlite3.Connection, repo_id: int, ref: str, parent: str) -> None:
    """Check that a ref still points to the commit whose hash, full or short, is given. Raises 412."""
    if not resolve(db, repo_id, ref).oid.startswith(parent):
        raise http_error(412, "Conflict", STALE_PARENT)


def _insert_commit(
    db: sqlite3.Connection,
    repo_id: int,
    parent: str | None,
    tree: Tree,
    details: CommitDetails,
    date: int | None = None,
) -> Commit:
    title, message, author, date = details.title, details.message, details.author, date or now()
    tree_json = json.dumps({path: list(asdict(entry).values()) for path, entry in sorted(tree.items())})
    # Not git's own hash, since there are no git objects. The time makes it unique.
    identity = json.dumps([repo_id, parent, tree_json, title, message, author, date, time.time_ns()])
    oid = hashlib.sha1(identity.encode("utf-8", "surrogatepass")).hexdigest()
    db.execute(
        "insert into revision values (?, ?, ?, ?, ?, ?, ?, ?)",
        (repo_id, oid, parent, tree_json, title, message, author, date),
    )
    return Commit(oid, parent, tree, title, message, author, date)


def remove_lfs_files(db: sqlite3.Connection, repo_id: int, sha256s: set[str]) -> None:
    """Rewrite the history of a repo without these LFS files: every commit that has one, and the commits after it."""
    children: dict[str | None, list[str]] = {}
    for row in db.execute("select oid, parent from revision where repo = ?", (repo_id,)).fetchall():
        children.setdefault(row["parent"], []).append(row["oid"])
    rewritten: dict[str | None, str] = {}  # old oid -> new oid
    queue = children.get(None, [])
    for oid in queue:  # which grows: parents come before their children
        queue += children.get(oid, [])
        commit = get_commit(db, repo_id, oid)
        tree = {path: entry for path, entry in commit.tree.items() if not (entry.lfs and entry.sha256 in sha256s)}
        if commit.parent in rewritten or len(tree) < len(commit.tree):
            details = CommitDetails(commit.title, commit.message, commit.author)
            parent = rewritten.get(commit.parent, commit.parent)
            rewritten[oid] = _insert_commit(db, repo_id, parent, tree, details, commit.date).oid
    for old, new in rewritten.items():
        db.execute("update ref set oid = ? where repo = ? and oid = ?", (new, repo_id, old))
        db.execute("update discussion set merged = ? where repo = ? and merged = ?", (new, repo_id, old))
        db.execute("delete from revision where repo = ? and oid = ?", (repo_id, old))
