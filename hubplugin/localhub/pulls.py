"""Pull requests as rows: a discussion, a ref refs/pr/N, and a merge by whole files.

Like `repos`, it works in a transaction that the caller opened, and knows no request and no rights.
"""

import sqlite3

from hubplugin.localhub import repos
from hubplugin.localhub.refusal import refuse
from hubplugin.localhub.repos import Commit, Repo, Tree


def discuss(
    db: sqlite3.Connection,
    repo: Repo,
    title: str,
    description: str,
    author: str,
    base: str,
    pull: bool,
    status: str,
) -> int:
    """Open a discussion, or a pull request onto the branch `base`; its number."""
    last = db.execute("select max(num) from discussion where repo = ?", (repo.id,)).fetchone()[0]
    num = (last or 0) + 1
    db.execute(
        "insert into discussion values (?, ?, ?, ?, ?, ?, ?, ?, ?, null)",
        (repo.id, num, title, description, author, status, pull, base, repos.now()),
    )
    if pull:
        repos.set_ref(db, repo, f"refs/pr/{num}", repos.resolve(db, repo, base).oid)
    return num


def conflicts(db: sqlite3.Connection, repo: Repo, num: int, base: str) -> tuple[Commit, Commit, list[str]]:
    """A pull request's head, where it left `base`, and the paths that both sides changed differently."""
    theirs = repos.resolve(db, repo, f"refs/pr/{num}")
    ours = repos.resolve(db, repo, base)
    line = {commit.oid for commit in repos.history(db, repo, ours)}
    fork = next(commit for commit in repos.history(db, repo, theirs) if commit.oid in line)
    both = [
        path
        for path in sorted(fork.tree.keys() | theirs.tree.keys() | ours.tree.keys())
        if theirs.tree.get(path) != fork.tree.get(path)
        and ours.tree.get(path) != fork.tree.get(path)
        and ours.tree.get(path) != theirs.tree.get(path)
    ]
    return theirs, fork, both


def merge(db: sqlite3.Connection, repo: Repo, num: int, author: str) -> Commit:
    """Put an open pull request's changes onto its base as one commit. Raises 404 and 409."""
    row = db.execute("select * from discussion where repo = ? and num = ? and pull", (repo.id, num)).fetchone()
    if row is None:
        raise refuse(404, "NotFound", f"No pull request {num}")
    if row["status"] not in ("open", "draft"):
        raise refuse(409, "Conflict", f"This pull request is {row['status']}")
    theirs, fork, both = conflicts(db, repo, num, row["base"])
    if both:
        raise refuse(409, "Conflict", f"Both sides changed {', '.join(both[:5])}")

    def change(tree: Tree) -> Tree:
        tree = {path: e for path, e in tree.items() if path in theirs.tree or path not in fork.tree}
        return tree | {path: e for path, e in theirs.tree.items() if fork.tree.get(path) != e}

    made = repos.commit(db, repo, f"refs/heads/{row['base']}", change, f"{row['title']} (#{num})", "", author)
    db.execute(
        "update discussion set status = 'merged', merged = ? where repo = ? and num = ?",
        (made.oid, repo.id, num),
    )
    return made
