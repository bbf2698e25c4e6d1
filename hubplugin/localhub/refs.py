"""Branches, tags, history and pull requests.

Rules live in `repos` and `access`; this file only translates between rows and the shapes that clients
parse.
"""

import sqlite3
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter

from hubplugin.localhub import pulls, repos
from hubplugin.localhub.access import writer
from hubplugin.localhub.call import Asked, Body, Call, field, iso
from hubplugin.localhub.refusal import refuse
from hubplugin.localhub.repos import KINDS, Repo

router = APIRouter()


@router.get("/api/{kind}/{owner}/{name}/refs")
def list_refs(call: Asked, include_prs: bool = False) -> dict[str, Any]:
    """Branches and tags, and the heads of pull requests where asked for."""
    answer: dict[str, Any] = {"converts": []}
    with call.hub.store.read() as db:
        repo = call.repo(db, "see")
        for key, prefix in (
            ("branches", "refs/heads/"),
            ("tags", "refs/tags/"),
            ("pullRequests", "refs/pr/"),
        ):
            found = repos.refs(db, repo, prefix).items()
            answer[key] = [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in found]
    if not include_prs:
        del answer["pullRequests"]
    return answer


@router.get("/api/{kind}/{owner}/{name}/commits/{rev}")
def list_commits(call: Asked) -> list[dict[str, Any]]:
    """A revision's history, newest first."""
    with call.hub.store.read() as db:
        repo = call.repo(db, "see")
        return [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": iso(commit.date),
                "authors": [{"user": commit.author}],
                "parents": [commit.parent] if commit.parent else [],
            }
            for commit in repos.history(db, repo, repos.resolve(db, repo, call.text("rev")))
        ]


def _new_ref(call: Call, ref: str, revision: str) -> dict[str, bool]:
    with call.hub.store.write() as db:
        repo = call.repo(db, "write")
        if repos.ref_of(db, repo, ref) == ref:
            raise refuse(409, "Conflict", f"Reference {ref} already exists")
        repos.set_ref(db, repo, ref, repos.resolve(db, repo, revision).oid)
    return {"success": True}


def _drop_ref(call: Call, ref: str) -> dict[str, bool]:
    with call.hub.store.write() as db:
        repo = call.repo(db, "write")
        if repos.ref_of(db, repo, ref) != ref:
            raise refuse(404, "RevisionNotFound", f"Invalid rev id: {quote(ref)}")
        db.execute("delete from ref where repo = ? and name = ?", (repo.id, ref))
    return {"success": True}


@router.post("/api/{kind}/{owner}/{name}/branch/{rev}")
def create_branch(call: Asked, body: Body) -> dict[str, bool]:
    """A branch at `startingPoint`, or at the head of main."""
    return _new_ref(call, f"refs/heads/{repos.check_ref_name(call.text('rev'))}", field(body, "startingPoint", "HEAD"))


@router.delete("/api/{kind}/{owner}/{name}/branch/{rev}")
def delete_branch(call: Asked) -> dict[str, bool]:
    """Any branch but main."""
    if call.text("rev") == "main":
        raise refuse(403, "Forbidden", "The branch main cannot be deleted")
    return _drop_ref(call, f"refs/heads/{call.text('rev')}")


@router.post("/api/{kind}/{owner}/{name}/tag/{rev}")
def create_tag(call: Asked, body: Body) -> dict[str, bool]:
    """A tag on a revision."""
    return _new_ref(call, f"refs/tags/{repos.check_ref_name(field(body, 'tag'))}", call.text("rev"))


@router.delete("/api/{kind}/{owner}/{name}/tag/{rev}")
def delete_tag(call: Asked) -> dict[str, bool]:
    """Forget a tag."""
    return _drop_ref(call, f"refs/tags/{call.text('rev')}")


# Pull requests


@router.post("/api/{kind}/{owner}/{name}/discussions")
def open_discussion(call: Asked, body: Body) -> dict[str, Any]:
    """A discussion, or a draft pull request onto main."""
    with call.hub.store.write() as db:
        repo = call.repo(db, "propose")
        pull = body.get("pullRequest") is True
        author = writer(call.user).name
        status = "draft" if pull else "open"
        num = pulls.discuss(
            db, repo, field(body, "title"), field(body, "description", ""), author, "main", pull, status
        )
    return {"num": num, "url": f"{call.web(repo)}/discussions/{num}", "pullRequest": pull}


def _summary(repo: Repo, row: sqlite3.Row) -> dict[str, Any]:
    return {
        "num": row["num"],
        "title": row["title"],
        "status": row["status"],
        "isPullRequest": bool(row["pull"]),
        "createdAt": iso(row["created"]),
        "author": {"name": row["author"]},
        "repo": {"name": repo.name, "type": KINDS[repo.kind]},
    }


@router.get("/api/{kind}/{owner}/{name}/discussions")
def list_discussions(call: Asked, type: str = "all", status: str = "all", author: str = "") -> dict[str, Any]:
    """All discussions and pull requests on one page, newest first."""
    with call.hub.store.read() as db:
        repo = call.repo(db, "see")
        rows = db.execute("select * from discussion where repo = ? order by num desc", (repo.id,)).fetchall()
    found = [
        _summary(repo, row)
        for row in rows
        if type in ("all", "pull_request" if row["pull"] else "discussion")
        and (status == "all" or (status == "open") == (row["status"] in ("open", "draft")))
        and author in ("", row["author"])
    ]
    return {"discussions": found, "count": len(found), "start": 0}


def _row(db: sqlite3.Connection, repo: Repo, num: int) -> sqlite3.Row:
    if not 0 < num < 2**31:
        raise refuse(404, "NotFound", f"No discussion {num}")
    row = db.execute("select * from discussion where repo = ? and num = ?", (repo.id, num)).fetchone()
    if row is None:
        raise refuse(404, "NotFound", f"No discussion {num}")
    return row


@router.get("/api/{kind}/{owner}/{name}/discussions/{num}")
def get_discussion(call: Asked, num: int) -> dict[str, Any]:
    """One discussion; of a pull request also the paths it changes and those in conflict."""
    with call.hub.store.read() as db:
        repo = call.repo(db, "see")
        row = _row(db, repo, num)
        answer = _summary(repo, row) | {"events": _events(row)}
        if row["pull"]:
            theirs, fork, both = pulls.conflicts(db, repo, num, row["base"])
            paths = sorted(theirs.tree.keys() | fork.tree.keys())
            changed = [path for path in paths if theirs.tree.get(path) != fork.tree.get(path)]
            base = {"base": f"refs/heads/{row['base']}", "mergeCommitId": row["merged"]}
            answer |= {
                "changes": base,
                "filesWithConflicts": both,
                "diff": "".join(f"{path}\n" for path in changed),
            }
    return answer


def _events(row: sqlite3.Row) -> list[dict[str, Any]]:
    text = {"edited": False, "hidden": False, "latest": {"raw": row["description"], "html": ""}}
    return [
        {
            "id": f"{row['num']:024x}",
            "type": "comment",
            "createdAt": iso(row["created"]),
            "author": {"name": row["author"]},
            "data": text,
        }
    ]


@router.post("/api/{kind}/{owner}/{name}/discussions/{num}/merge")
def merge(call: Asked, num: int) -> dict[str, Any]:
    """Put a pull request onto its base. Refuses with 409 where both sides changed a file."""
    with call.hub.store.write() as db:
        repo = call.repo(db, "write")
        _row(db, repo, num)
        pulls.merge(db, repo, num, writer(call.user).name)
        return _changed(_row(db, repo, num))


@router.post("/api/{kind}/{owner}/{name}/discussions/{num}/status")
def change_status(call: Asked, body: Body, num: int) -> dict[str, Any]:
    """Open or close; by the author or the repo's owner."""
    status = field(body, "status")
    with call.hub.store.write() as db:
        repo = call.repo(db, "propose")
        row = _row(db, repo, num)
        if row["author"] != writer(call.user).name:
            call.repo(db, "write")
        if status not in ("open", "closed") or row["status"] == "merged":
            raise refuse(400, "BadRequest", f"{row['status']} cannot become {status!r}")
        db.execute("update discussion set status = ? where repo = ? and num = ?", (status, repo.id, num))
        return _changed(_row(db, repo, num))


def _changed(row: sqlite3.Row) -> dict[str, Any]:
    event = _events(row)[0] | {"type": "status-change", "data": {"status": row["status"]}}
    return {"newStatus": event}
