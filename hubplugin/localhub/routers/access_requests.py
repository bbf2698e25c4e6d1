"""Routes of gated repos: check access, request it, grant it, list the requests."""

from typing import Any

from fastapi import APIRouter

from hubplugin.localhub.access import Permission
from hubplugin.localhub.dependencies import Context, JsonBody, string_field
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.timestamps import now, to_iso
from hubplugin.localhub.users import require_user

router = APIRouter()


@router.get("/api/{kind}/{owner}/{name}/auth-check")
@router.get("/api/{kind}/{owner}/{name}/auth-check/write")
def auth_check(context: Context) -> dict[str, bool]:
    """Succeed where the sender may download the repo's files, or write to it."""
    permission: Permission = "write" if context.request.url.path.endswith("/write") else "download"
    with context.hub.store.read() as db:
        context.repo(db, permission)
    return {"success": True}


@router.post("/{owner}/{name}/ask-access")
@router.post("/{kind}/{owner}/{name}/ask-access")
def request_access(context: Context) -> dict[str, str]:
    """Request access to a gated repo. With `manual` gating it is pending until the owner accepts it."""
    user = require_user(context.user)
    with context.hub.store.write() as db:
        repo = context.repo(db, "view")
        status = "pending" if repo.gated == "manual" else "accepted"
        db.execute("insert or ignore into guest values (?, ?, ?, ?)", (repo.id, user.name, status, now()))
        row = db.execute("select status from guest where repo = ? and user = ?", (repo.id, user.name)).fetchone()
    return {"status": row["status"]}


@router.post("/api/{kind}/{owner}/{name}/user-access-request/grant")
@router.post("/api/{kind}/{owner}/{name}/user-access-request/handle")
def handle_access_request(context: Context, body: JsonBody) -> dict[str, bool]:
    """Accept or reject a user; only the owner of the repo may."""
    user, status = string_field(body, "user"), string_field(body, "status", "accepted")
    if user not in context.hub.users.accounts() or status not in ("accepted", "rejected", "pending"):
        raise http_error(400, "BadRequest", f"No user {user!r}, or no status {status!r}")
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        db.execute("insert or replace into guest values (?, ?, ?, ?)", (repo.id, user, status, now()))
    return {"success": True}


@router.get("/api/{kind}/{owner}/{name}/user-access-request/{status}")
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
