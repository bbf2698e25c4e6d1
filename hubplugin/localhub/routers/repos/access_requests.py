"""Routes of gated repos: check access, request it, grant it, list the requests."""

import re
from typing import Any

from fastapi import APIRouter

from hubplugin.localhub.access import Permission
from hubplugin.localhub.contents.repos import Repo
from hubplugin.localhub.dependencies import Context, JsonBody, string_field
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.timestamps import now, to_iso
from hubplugin.localhub.users import require_user

router = APIRouter()


@router.get("/api/{kind:kind}/{owner}/{name}/auth-check")
@router.get("/api/{kind:kind}/{owner}/{name}/auth-check/write")
def auth_check(context: Context) -> dict[str, bool]:
    """Succeed where the sender may download the repo's files, or write to it."""
    permission: Permission = "write" if context.request.url.path.endswith("/write") else "download"
    with context.hub.store.read() as db:
        context.repo(db, permission)
    return {"success": True}


@router.post("/{owner}/{name}/ask-access")
@router.post("/{kind:kind}/{owner}/{name}/ask-access")
def request_access(context: Context) -> dict[str, str]:
    """Request access to a gated repo. With `manual` gating it is pending until the owner accepts it."""
    user = require_user(context.user)
    with context.hub.store.write() as db:
        repo = context.repo(db, "view")
        status = "pending" if repo.gated == "manual" else "accepted"
        db.execute("insert or ignore into guest values (?, ?, ?, ?)", (repo.id, user.name, status, now()))
        row = db.execute("select status from guest where repo = ? and user = ?", (repo.id, user.name)).fetchone()
    return {"status": row["status"]}


@router.post("/api/{kind:kind}/{owner}/{name}/user-access-request/grant")
def grant_access(context: Context, body: JsonBody) -> dict[str, bool]:
    """Accept a user who need not have asked; only the owner of the repo may. Raises 400 where that is so already."""
    user = string_field(body, "user")
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        if not repo.gated:
            raise http_error(400, "BadRequest", f"{repo.name} is not gated")
        if user not in context.hub.users.accounts():
            raise http_error(404, "NotFound", f"No user {user!r}")
        row = db.execute("select status from guest where repo = ? and user = ?", (repo.id, user)).fetchone()
        if row and row["status"] == "accepted":
            raise http_error(400, "BadRequest", f"{user} has access to {repo.name} already")
        db.execute("insert or replace into guest values (?, ?, 'accepted', ?)", (repo.id, user, now()))
    return {"success": True}


@router.post("/api/{kind:kind}/{owner}/{name}/user-access-request/handle")
def handle_access_request(context: Context, body: JsonBody) -> dict[str, bool]:
    """Accept, reject or reopen a request; only the owner of the repo may. Raises 400 where it has that status."""
    status = string_field(body, "status")
    if status not in ("accepted", "rejected", "pending"):
        raise http_error(400, "BadRequest", f"No status {status!r}")
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        user = string_field(body, "user") if body.get("requestId") is None else _user_of_request(repo, body)
        row = db.execute("select status from guest where repo = ? and user = ?", (repo.id, user)).fetchone()
        if row is None:
            raise http_error(404, "NotFound", f"{user!r} has not asked for access to {repo.name}")
        if row["status"] == status:
            raise http_error(400, "BadRequest", f"The request of {user} is {status} already")
        db.execute("update guest set status = ? where repo = ? and user = ?", (status, repo.id, user))
    return {"success": True}


def _user_of_request(repo: Repo, body: dict[str, Any]) -> str:
    """The user in a request id as `list_access_requests` makes them. Raises 404."""
    match = re.fullmatch(rf"{repo.id}-(.+)", string_field(body, "requestId"))
    if match is None:
        raise http_error(404, "NotFound", "No access request with this id")
    return match[1]


@router.get("/api/{kind:kind}/{owner}/{name}/user-access-request/{status}")
def list_access_requests(context: Context, status: str) -> list[dict[str, Any]]:
    """The access requests with one status: pending, accepted or rejected."""
    with context.hub.store.read() as db:
        repo = context.repo(db, "write")
        rows = db.execute("select * from guest where repo = ? and status = ?", (repo.id, status)).fetchall()
    return [
        {
            "requestId": f"{repo.id}-{row['user']}",
            "user": {"user": row["user"], "fullname": row["user"]},
            "status": row["status"],
            "timestamp": to_iso(row["asked"]),
        }
        for row in rows
    ]
