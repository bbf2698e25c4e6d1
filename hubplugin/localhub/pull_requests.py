"""Discussions and pull requests as database rows.

A pull request is a discussion with a ref refs/pr/N. Merging compares whole files, not lines. Every function works in a
transaction that the caller has opened with `store`. This module knows no HTTP request and no permissions.
"""

import sqlite3
from dataclasses import dataclass

from hubplugin.localhub import git
from hubplugin.localhub.git import Commit, CommitDetails, Tree
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.repos import Repo
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
    merge_base: Commit  # the newest commit that the pull request and the base branch share
    conflicts: list[str]  # paths that both sides changed, differently

    @property
    def changed_paths(self) -> list[str]:
        """The paths that the pull request adds, changes or deletes."""
        paths = sorted(self.head.tree.keys() | self.merge_base.tree.keys())
        return [path for path in paths if self.head.tree.get(path) != self.merge_base.tree.get(path)]

    def apply(self, base_tree: Tree) -> Tree:
        """The base branch's tree with the pull request's changes."""
        head, merge_base = self.head.tree, self.merge_base.tree
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
    if new.is_pull_request:
        git.set_ref(db, repo.id, f"refs/pr/{num}", git.resolve(db, repo.id, new.base).oid)
    return num


def find_discussion(db: sqlite3.Connection, repo: Repo, num: int) -> sqlite3.Row | None:
    """The row of a discussion or pull request."""
    row: sqlite3.Row | None = db.execute(
        "select * from discussion where repo = ? and num = ?", (repo.id, num)
    ).fetchone()
    return row


def diff(db: sqlite3.Connection, repo: Repo, num: int, base: str) -> PullRequestDiff:
    """What a pull request changes, and where that conflicts with its base branch."""
    head = git.resolve(db, repo.id, f"refs/pr/{num}")
    base_head = git.resolve(db, repo.id, base)
    base_history = {commit.oid for commit in git.history(db, repo.id, base_head)}
    merge_base = next(commit for commit in git.history(db, repo.id, head) if commit.oid in base_history)
    conflicts = [
        path
        for path in sorted(merge_base.tree.keys() | head.tree.keys() | base_head.tree.keys())
        if head.tree.get(path) != merge_base.tree.get(path)
        and base_head.tree.get(path) != merge_base.tree.get(path)
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
    if changes.conflicts:
        raise http_error(409, "Conflict", f"Both sides changed {', '.join(changes.conflicts[:5])}")
    details = CommitDetails(f"{row['title']} (#{num})", "", author)
    commit = git.create_commit(db, repo.id, f"refs/heads/{row['base']}", changes.apply, details)
    db.execute(
        "update discussion set status = 'merged', merged = ? where repo = ? and num = ?", (commit.oid, repo.id, num)
    )
    return commit
