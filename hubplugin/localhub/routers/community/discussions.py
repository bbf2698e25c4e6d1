"""Routes of discussions and pull requests: open, list, comment, rename, close, merge."""

import html
import json
import sqlite3
from typing import Any

from fastapi import APIRouter

from hubplugin.localhub.contents import discussions
from hubplugin.localhub.contents.discussions import NewDiscussion
from hubplugin.localhub.contents.repos import TYPE_OF_KIND, Repo
from hubplugin.localhub.contents.text_diff import text_diff
from hubplugin.localhub.dependencies import Context, JsonBody, RequestContext, string_field
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.timestamps import to_iso
from hubplugin.localhub.users import require_write_role

router = APIRouter()

HIDDEN_TEXT = "This comment has been hidden"


@router.post("/api/{kind:kind}/{owner}/{name}/discussions")
def create_discussion(context: Context, body: JsonBody) -> dict[str, Any]:
    """Open a discussion, or a draft pull request onto main."""
    with context.hub.store.write() as db:
        repo = context.repo(db, "contribute")
        is_pull_request = body.get("pullRequest") is True
        new = NewDiscussion(
            title=_title_field(body),
            description=string_field(body, "description", ""),
            author=require_write_role(context.user).name,
            is_pull_request=is_pull_request,
            status="draft" if is_pull_request else "open",
        )
        num = discussions.open_discussion(db, repo, new)
    return {"num": num, "url": f"{context.repo_url(repo)}/discussions/{num}", "pullRequest": is_pull_request}


@router.get("/api/{kind:kind}/{owner}/{name}/discussions")
def list_discussions(context: Context, type: str = "all", status: str = "all", author: str = "") -> dict[str, Any]:
    """All discussions and pull requests on one page, newest first."""
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        rows = db.execute("select * from discussion where repo = ? order by num desc", (repo.id,)).fetchall()
    listed = [
        _summary(repo, row)
        for row in rows
        if type in ("all", "pull_request" if row["pull"] else "discussion")
        and (status == "all" or (status == "open") == (row["status"] in ("open", "draft")))
        and author in ("", row["author"])
    ]
    return {"discussions": listed, "count": len(listed), "start": 0}


@router.get("/api/{kind:kind}/{owner}/{name}/discussions/{num}")
def get_discussion(context: Context, num: int) -> dict[str, Any]:
    """One discussion with its events; for a pull request also what it changes and the paths in conflict."""
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        row = _get_row(db, repo, num)
        events = discussions.list_events(db, repo, num)
        response = _summary(repo, row) | {"events": [_event(event) for event in events]}
        if row["pull"]:
            changes = discussions.diff(db, repo, num, row["base"])
            readable = context.hub.access.can_download(db, context.user, repo)
            response |= {
                "changes": {"base": f"refs/heads/{row['base']}", "mergeCommitId": row["merged"]},
                "filesWithConflicts": changes.conflicts if changes.merge_base else True,
            }
    if row["pull"]:
        trees = (changes.base_tree, changes.head.tree)
        response["diff"] = text_diff(context.hub.store.blobs, *trees, changes.changed_paths) if readable else ""
    return response


@router.post("/api/{kind:kind}/{owner}/{name}/discussions/{num}/comment")
def add_comment(context: Context, body: JsonBody, num: int) -> dict[str, Any]:
    """Comment; everybody who may open a discussion may."""
    with context.hub.store.write() as db:
        repo = context.repo(db, "contribute")
        _get_row(db, repo, num)
        return {"newMessage": _event(_comment(context, db, repo, num, string_field(body, "comment")))}


@router.post("/api/{kind:kind}/{owner}/{name}/discussions/{num}/comment/{comment_id}/edit")
@router.post("/api/{kind:kind}/{owner}/{name}/discussions/{num}/comment/{comment_id}/hide")
def change_comment(context: Context, body: JsonBody, num: int, comment_id: str) -> dict[str, Any]:
    """Edit a comment, which only its author may, or hide it for good, which the owner of the repo may too."""
    hide = context.request.url.path.endswith("/hide")
    raw = HIDDEN_TEXT if hide else string_field(body, "content")
    with context.hub.store.write() as db:
        repo = context.repo(db, "contribute")
        _get_row(db, repo, num)
        comment = _get_comment(db, repo, num, comment_id)
        author = require_write_role(context.user).name
        if comment["author"] != author and not (hide and context.repo(db, "write")):
            raise http_error(403, "Forbidden", "Only its author may edit a comment")
        discussions.edit_comment(db, comment, raw, author, hidden=hide)
        return {"updatedComment": _event(_get_comment(db, repo, num, comment_id, hidden=hide))}


@router.post("/api/{kind:kind}/{owner}/{name}/discussions/{num}/title")
def change_title(context: Context, body: JsonBody, num: int) -> dict[str, Any]:
    """Rename; allowed for the author and for the owner of the repo."""
    title = _title_field(body)
    with context.hub.store.write() as db:
        repo, row = _get_row_to_change(context, db, num)
        event = discussions.rename(db, repo, row, title, require_write_role(context.user).name)
    return {"newTitle": _event(event)}


@router.post("/api/{kind:kind}/{owner}/{name}/discussions/{num}/merge")
def merge_pull_request(context: Context, body: JsonBody, num: int) -> dict[str, Any]:
    """Merge a pull request into its base branch. Raises 409 where both sides changed a file."""
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        _get_row(db, repo, num)
        discussions.merge(db, repo, num, require_write_role(context.user).name)
        status_event = discussions.list_events(db, repo, num)[-1]
        if body.get("comment"):
            _comment(context, db, repo, num, string_field(body, "comment"))
    return {"newStatus": _event(status_event)}


@router.post("/api/{kind:kind}/{owner}/{name}/discussions/{num}/status")
def change_status(context: Context, body: JsonBody, num: int) -> dict[str, Any]:
    """Open or close; allowed for the author and for the owner of the repo."""
    status = string_field(body, "status")
    with context.hub.store.write() as db:
        repo, row = _get_row_to_change(context, db, num)
        if status not in ("open", "closed") or row["status"] == "merged":
            raise http_error(400, "BadRequest", f"{row['status']} cannot become {status!r}")
        event = discussions.set_status(db, repo, num, status, require_write_role(context.user).name)
        if body.get("comment"):
            _comment(context, db, repo, num, string_field(body, "comment"))
    return {"newStatus": _event(event)}


def _title_field(body: dict[str, Any]) -> str:
    title = string_field(body, "title").strip()
    if not title:
        raise http_error(400, "BadRequest", "`title` must not be empty")
    return title


def _comment(context: RequestContext, db: sqlite3.Connection, repo: Repo, num: int, raw: str) -> sqlite3.Row:
    if not raw.strip():
        raise http_error(400, "BadRequest", "`comment` must not be empty")
    author = require_write_role(context.user).name
    return discussions.add_event(db, repo, num, "comment", author, {"raw": raw})


def _get_row(db: sqlite3.Connection, repo: Repo, num: int) -> sqlite3.Row:
    """The row of a discussion. Raises 404."""
    row = discussions.find_discussion(db, repo, num) if 0 < num < 2**31 else None
    if row is None:
        raise http_error(404, "NotFound", f"No discussion {num}")
    return row


def _get_row_to_change(context: RequestContext, db: sqlite3.Connection, num: int) -> tuple[Repo, sqlite3.Row]:
    """A discussion that the sender opened, or one in a repo of theirs. Raises 401, 403 and 404."""
    repo = context.repo(db, "contribute")
    row = _get_row(db, repo, num)
    if row["author"] != require_write_role(context.user).name:
        context.repo(db, "write")
    return repo, row


def _get_comment(db: sqlite3.Connection, repo: Repo, num: int, comment_id: str, hidden: bool = False) -> sqlite3.Row:
    """A comment. Raises 404, also for one that is hidden unless `hidden` allows it."""
    hex_id = comment_id[-15:] if len(comment_id) == 24 and comment_id.isalnum() else "-"
    try:
        event = discussions.find_event(db, repo, num, int(hex_id, 16))
    except ValueError:
        event = None
    if event is None or event["type"] != "comment" or (json.loads(event["data"]).get("hidden") and not hidden):
        raise http_error(404, "NotFound", f"No comment {comment_id}")
    return event


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


def _event(row: sqlite3.Row) -> dict[str, Any]:
    data = json.loads(row["data"])
    if row["type"] == "comment":
        latest = {
            "raw": data["raw"],
            "html": f"<p>{html.escape(data['raw'])}</p>",
            "updatedAt": to_iso(data.get("edited", row["created"])),
            "author": {"name": data.get("editor", row["author"])},
        }
        history = [{"raw": raw} for raw in data.get("history", [])]
        edited = "edited" in data
        data = {"edited": edited, "hidden": data.get("hidden", False), "latest": latest, "history": history}
        data["numEdits"] = len(history)
    return {
        "id": f"{row['id']:024x}",
        "type": row["type"],
        "createdAt": to_iso(row["created"]),
        "author": {"name": row["author"]},
        "data": data,
    }
