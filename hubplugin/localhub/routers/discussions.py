"""Routes of discussions and pull requests. Comments are not supported; a discussion has only its description."""

import sqlite3
from typing import Any

from fastapi import APIRouter

from hubplugin.localhub import pull_requests
from hubplugin.localhub.dependencies import Context, JsonBody, string_field
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.pull_requests import NewDiscussion
from hubplugin.localhub.repos import TYPE_OF_KIND, Repo
from hubplugin.localhub.timestamps import to_iso
from hubplugin.localhub.users import require_write_role

router = APIRouter()


@router.post("/api/{kind}/{owner}/{name}/discussions")
def create_discussion(context: Context, body: JsonBody) -> dict[str, Any]:
    """Open a discussion, or a draft pull request onto main."""
    with context.hub.store.write() as db:
        repo = context.repo(db, "contribute")
        is_pull_request = body.get("pullRequest") is True
        new = NewDiscussion(
            title=string_field(body, "title"),
            description=string_field(body, "description", ""),
            author=require_write_role(context.user).name,
            is_pull_request=is_pull_request,
            status="draft" if is_pull_request else "open",
        )
        num = pull_requests.open_discussion(db, repo, new)
    return {"num": num, "url": f"{context.repo_url(repo)}/discussions/{num}", "pullRequest": is_pull_request}


@router.get("/api/{kind}/{owner}/{name}/discussions")
def list_discussions(context: Context, type: str = "all", status: str = "all", author: str = "") -> dict[str, Any]:
    """All discussions and pull requests on one page, newest first."""
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        rows = db.execute("select * from discussion where repo = ? order by num desc", (repo.id,)).fetchall()
    discussions = [
        _summary(repo, row)
        for row in rows
        if type in ("all", "pull_request" if row["pull"] else "discussion")
        and (status == "all" or (status == "open") == (row["status"] in ("open", "draft")))
        and author in ("", row["author"])
    ]
    return {"discussions": discussions, "count": len(discussions), "start": 0}


@router.get("/api/{kind}/{owner}/{name}/discussions/{num}")
def get_discussion(context: Context, num: int) -> dict[str, Any]:
    """One discussion; for a pull request also the paths that it changes and those in conflict."""
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        row = _get_row(db, repo, num)
        response = _summary(repo, row) | {"events": [_description_event(row)]}
        if row["pull"]:
            diff = pull_requests.diff(db, repo, num, row["base"])
            response |= {
                "changes": {"base": f"refs/heads/{row['base']}", "mergeCommitId": row["merged"]},
                "filesWithConflicts": diff.conflicts,
                "diff": "".join(f"{path}\n" for path in diff.changed_paths),
            }
    return response


@router.post("/api/{kind}/{owner}/{name}/discussions/{num}/merge")
def merge_pull_request(context: Context, num: int) -> dict[str, Any]:
    """Merge a pull request into its base branch. Raises 409 where both sides changed a file."""
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        _get_row(db, repo, num)
        pull_requests.merge(db, repo, num, require_write_role(context.user).name)
        return {"newStatus": _status_event(_get_row(db, repo, num))}


@router.post("/api/{kind}/{owner}/{name}/discussions/{num}/status")
def change_status(context: Context, body: JsonBody, num: int) -> dict[str, Any]:
    """Open or close; allowed for the author and for the owner of the repo."""
    status = string_field(body, "status")
    with context.hub.store.write() as db:
        repo = context.repo(db, "contribute")
        row = _get_row(db, repo, num)
        if row["author"] != require_write_role(context.user).name:
            context.repo(db, "write")
        if status not in ("open", "closed") or row["status"] == "merged":
            raise http_error(400, "BadRequest", f"{row['status']} cannot become {status!r}")
        db.execute("update discussion set status = ? where repo = ? and num = ?", (status, repo.id, num))
        return {"newStatus": _status_event(_get_row(db, repo, num))}


def _get_row(db: sqlite3.Connection, repo: Repo, num: int) -> sqlite3.Row:
    """The row of a discussion. Raises 404."""
    row = pull_requests.find_discussion(db, repo, num) if 0 < num < 2**31 else None
    if row is None:
        raise http_error(404, "NotFound", f"No discussion {num}")
    return row


def _summary(repo: Repo, row: sqlite3.Row) -> dict[str, Any]:
    return {
        "num": row["num"],
        "title": row["title"],
        "status": row["status"],
        "isPullRequest": bool(row["pull"]),
        "createdAt": to_iso(row["created"]),
        "author": {"name": row["author"]},
        "repo": {"name": repo.name, "type": TYPE_OF_KIND[repo.kind]},
    }


def _event(row: sqlite3.Row, event_type: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"{row['num']:024x}",
        "type": event_type,
        "createdAt": to_iso(row["created"]),
        "author": {"name": row["author"]},
        "data": data,
    }


def _description_event(row: sqlite3.Row) -> dict[str, Any]:
    """The first comment, which the Hub shows as the description."""
    latest = {"raw": row["description"], "html": ""}
    return _event(row, "comment", {"edited": False, "hidden": False, "latest": latest})


def _status_event(row: sqlite3.Row) -> dict[str, Any]:
    return _event(row, "status-change", {"status": row["status"]})
