"""Discussions and pull requests as database rows, and their events: comments, changes of title and status, commits.

A pull request is a discussion with a ref refs/pr/N. Merging compares whole files, not lines. Every function works in a
transaction that the caller has opened with `store`. This module knows no HTTP request and no permissions.
"""

import json
import re
import sqlite3
from dataclasses import dataclass
from typing import Any

from hubplugin.localhub.contents import git
from hubplugin.localhub.contents.git import Commit, CommitDetails, Tree
from hubplugin.localhub.contents.repos import Repo
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.timestamps import now


@dataclass(frozen=True)
class NewDiscussion:
    """A discussion or pull request that is about to be opened."""

    title: str
    description: str
    author: str
    is_pull_request: bool
    status: str  # draft | open
    base: str = "main"  # the branch that a pull request is to be merged into


@dataclass(frozen=True)
class PullRequestDiff:
    """A pull request compared with its base branch."""

    head: Commit  # of the pull request
    merge_base: Commit | None  # the newest commit that both share; None after the history of one was squashed
    conflicts: list[str]  # paths that both sides changed, differently

    @property
    def changed_paths(self) -> list[str]:
        """The paths that the pull request adds, changes or deletes."""
        paths = sorted(self.head.tree.keys() | self.base_tree.keys())
        return [path for path in paths if self.head.tree.get(path) != self.base_tree.get(path)]

    @property
    def base_tree(self) -> Tree:
        """The tree that the pull request began with."""
        return self.merge_base.tree if self.merge_base else {}

    def apply(self, base_tree: Tree) -> Tree:
        """The base branch's tree with the pull request's changes."""
        head, merge_base = self.head.tree, self.base_tree
        kept = {path: entry for path, entry in base_tree.items() if path in head or path not in merge_base}
        return kept | {path: entry for path, entry in head.items() if merge_base.get(path) != entry}


def open_discussion(db: sqlite3.Connection, repo: Repo, new: NewDiscussion) -> int:
    """Open a discussion or pull request; return its number."""
    last = db.execute("select max(num) from discussion where repo = ?", (repo.id,)).fetchone()[0]
    num = (last or 0) + 1
    db.execute(
        "insert into discussion values (?, ?, ?, ?, ?, ?, ?, ?, ?, null)",
        (repo.id, num, new.title, new.description, new.author, new.status, new.is_pull_request, new.base, now()),
    )
    add_event(db, repo, num, "comment", new.author, {"raw": new.description})
    if new.is_pull_request:
        git.set_ref(db, repo.id, f"refs/pr/{num}", git.resolve(db, repo.id, new.base).oid)
    return num


def find_discussion(db: sqlite3.Connection, repo: Repo, num: int) -> sqlite3.Row | None:
    """The row of a discussion or pull request."""
    row: sqlite3.Row | None = db.execute(
        "select * from discussion where repo = ? and num = ?", (repo.id, num)
    ).fetchone()
    return row


def add_event(
    db: sqlite3.Connection, repo: Repo, num: int, event_type: str, author: str, data: dict[str, Any]
) -> sqlite3.Row:
    """Add an event: comment {raw}, title-change {from, to}, status-change {status} or commit {subject, oid}."""
    row = (repo.id, num, event_type, author, now(), json.dumps(data))
    event_id = db.execute(
        "insert into event (repo, num, type, author, created, data) values (?, ?, ?, ?, ?, ?)", row
    ).lastrowid
    event = find_event(db, repo, num, event_id or 0)
    assert event is not None
    return event


def find_event(db: sqlite3.Connection, repo: Repo, num: int, event_id: int) -> sqlite3.Row | None:
    """One event of a discussion."""
    row: sqlite3.Row | None = db.execute(
        "select * from event where repo = ? and num = ? and id = ?", (repo.id, num, event_id)
    ).fetchone()
    return row


def list_events(db: sqlite3.Connection, repo: Repo, num: int) -> list[sqlite3.Row]:
    """The events of a discussion, oldest first."""
    return db.execute("select * from event where repo = ? and num = ? order by id", (repo.id, num)).fetchall()


def edit_comment(db: sqlite3.Connection, comment: sqlite3.Row, raw: str, editor: str, hidden: bool = False) -> None:
    """Replace the text of a comment, which keeps its former texts; a hidden comment keeps none."""
    data = json.loads(comment["data"])
    history = [] if hidden else [*data.get("history", []), data["raw"]]
    data = {"raw": raw, "history": history, "edited": now(), "editor": editor, "hidden": hidden}
    db.execute("update event set data = ? where id = ?", (json.dumps(data), comment["id"]))


def rename(db: sqlite3.Connection, repo: Repo, row: sqlite3.Row, title: str, author: str) -> sqlite3.Row:
    """Change the title of a discussion; return the event."""
    db.execute("update discussion set title = ? where repo = ? and num = ?", (title, repo.id, row["num"]))
    return add_event(db, repo, row["num"], "title-change", author, {"from": row["title"], "to": title})


def set_status(db: sqlite3.Connection, repo: Repo, num: int, status: str, author: str) -> sqlite3.Row:
    """Change the status of a discussion; return the event."""
    db.execute("update discussion set status = ? where repo = ? and num = ?", (status, repo.id, num))
    return add_event(db, repo, num, "status-change", author, {"status": status})


def note_commit(db: sqlite3.Connection, repo: Repo, ref: str, commit: Commit) -> None:
    """Tell a pull request of a commit to its ref; other refs are of no interest."""
    match = re.fullmatch(r"refs/pr/(\d+)", ref)
    if match:
        data = {"subject": commit.title, "oid": commit.oid}
        add_event(db, repo, int(match[1]), "commit", commit.author, data)


def diff(db: sqlite3.Connection, repo: Repo, num: int, base: str) -> PullRequestDiff:
    """What a pull request changes, and where that conflicts with its base branch."""
    head = git.resolve(db, repo.id, f"refs/pr/{num}")
    base_head = git.resolve(db, repo.id, base)
    base_history = {row["oid"] for row in git.log(db, repo.id, base_head.oid)}
    shared = (row["oid"] for row in git.log(db, repo.id, head.oid) if row["oid"] in base_history)
    merge_base_oid = next(shared, None)
    merge_base = git.get_commit(db, repo.id, merge_base_oid) if merge_base_oid else None
    merge_tree = merge_base.tree if merge_base else {}
    conflicts = [
        path
        for path in sorted(merge_tree.keys() | head.tree.keys() | base_head.tree.keys())
        if head.tree.get(path) != merge_tree.get(path)
        and base_head.tree.get(path) != merge_tree.get(path)
        and base_head.tree.get(path) != head.tree.get(path)
    ]
    return PullRequestDiff(head, merge_base, conflicts)


def merge(db: sqlite3.Connection, repo: Repo, num: int, author: str) -> Commit:
    """Put a pull request's changes onto its base branch as one commit. Raises 404 and 409."""
    row = find_discussion(db, repo, num)
    if row is None or not row["pull"]:
        raise http_error(404, "NotFound", f"No pull request {num}")
    if row["status"] not in ("open", "draft"):
        raise http_error(409, "Conflict", f"This pull request is {row['status']}")
    changes = diff(db, repo, num, row["base"])
    if changes.merge_base is None:
        raise http_error(409, "Conflict", "The pull request and its base branch have no commit in common")
    if changes.conflicts:
        raise http_error(409, "Conflict", f"Both sides changed {', '.join(changes.conflicts[:5])}")
    details = CommitDetails(f"{row['title']} (#{num})", "", author)
    commit = git.create_commit(db, repo.id, f"refs/heads/{row['base']}", changes.apply, details)
    db.execute("update discussion set merged = ? where repo = ? and num = ?", (commit.oid, repo.id, num))
    set_status(db, repo, num, "merged", author)
    return commit
