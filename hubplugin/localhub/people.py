"""Who is let into gated repos, and collections.

A collection is one JSON document. This file only translates between rows and the shapes that clients
parse.
"""

import json
import re
import secrets
import sqlite3
from typing import Any

from fastapi import APIRouter

from hubplugin.localhub import repos
from hubplugin.localhub.access import Right, writer
from hubplugin.localhub.call import Asked, Body, Call, field, iso
from hubplugin.localhub.refusal import refuse
from hubplugin.localhub.repos import KINDS

router = APIRouter()


@router.get("/api/{kind}/{owner}/{name}/auth-check")
@router.get("/api/{kind}/{owner}/{name}/auth-check/write")
def auth_check(call: Asked) -> dict[str, bool]:
    """Whether the caller may read the files, or write."""
    right: Right = "write" if call.request.url.path.endswith("/write") else "files"
    with call.hub.store.read() as db:
        call.repo(db, right)
    return {"success": True}


@router.post("/{owner}/{name}/ask-access")
@router.post("/{kind}/{owner}/{name}/ask-access")
def ask_access(call: Asked) -> dict[str, str]:
    """Ask to be let into a gated repo: at once where it is gated `auto`, else when the owner says so."""
    if call.user is None:
        raise refuse(401, "Unauthorized", "You need a token for this")
    with call.hub.store.write() as db:
        repo = call.repo(db, "see")
        status = "pending" if repo.gated == "manual" else "accepted"
        row = (repo.id, call.user.name, status, repos.now())
        db.execute("insert or ignore into guest values (?, ?, ?, ?)", row)
        rows = db.execute("select status from guest where repo = ? and user = ?", row[:2])
        return {"status": rows.fetchone()["status"]}


@router.post("/api/{kind}/{owner}/{name}/user-access-request/grant")
@router.post("/api/{kind}/{owner}/{name}/user-access-request/handle")
def let_in(call: Asked, body: Body) -> dict[str, bool]:
    """The owner's word on who may read a gated repo."""
    user, status = field(body, "user"), field(body, "status", "accepted")
    if user not in call.hub.access.users() or status not in ("accepted", "rejected", "pending"):
        raise refuse(400, "BadRequest", f"No user {user!r}, or no status {status!r}")
    with call.hub.store.write() as db:
        repo = call.repo(db, "write")
        db.execute("insert or replace into guest values (?, ?, ?, ?)", (repo.id, user, status, repos.now()))
    return {"success": True}


@router.get("/api/{kind}/{owner}/{name}/user-access-request/{status}")
def list_requests(call: Asked, status: str) -> list[dict[str, Any]]:
    """Who asked for access, by what became of it."""
    with call.hub.store.read() as db:
        repo = call.repo(db, "write")
        rows = db.execute("select * from guest where repo = ? and status = ?", (repo.id, status)).fetchall()
    return [
        {
            "requestId": f"{repo.id}-{row['user']}",
            "user": {"user": row["user"], "fullname": row["user"]},
            "status": row["status"],
            "timestamp": iso(row["asked"]),
        }
        for row in rows
    ]


# Collections


def _collection(call: Call, db: sqlite3.Connection, right: str = "see") -> dict[str, Any]:
    """The collection in the path. Raises 401, 403, 404."""
    slug = f"{call.text('owner')}/{call.text('slug')}"
    row = db.execute("select * from collection where slug = ?", (slug,)).fetchone()
    mine = row is not None and call.hub.access.owns(db, call.user, row["owner"])
    body: dict[str, Any] = json.loads(row["body"]) if row else {}
    if row is None or (body["private"] and not mine):
        raise refuse(404 if call.user else 401, "NotFound", f"No collection {slug}")
    if right == "write":
        writer(call.user)
        if not mine:
            raise refuse(403, "Forbidden", f"You don't have the rights to change {slug}")
    return body


def _shown(call: Call, db: sqlite3.Connection, body: dict[str, Any]) -> dict[str, Any]:
    """A collection without the repos that the caller must not know of."""
    items: list[dict[str, Any]] = []
    for item in body["items"]:
        kind = next((kind for kind, word in KINDS.items() if word == item["type"]), "")
        repo = repos.find(db, kind, item["id"])
        if repo and call.hub.access.may_see(db, call.user, repo):
            items.append(item | {"position": len(items), "note": {"text": item["note"]} if item["note"] else None})
    return body | {"items": items}


def _save(db: sqlite3.Connection, body: dict[str, Any]) -> None:
    body["lastUpdated"] = iso(repos.now())
    row = (body["slug"], body["owner"], json.dumps(body))
    db.execute("insert or replace into collection values (?, ?, ?)", row)


@router.post("/api/collections")
def create_collection(call: Asked, body: Body) -> dict[str, Any]:
    """A collection. Refuses with 409, and the slug, where the owner has one of that title."""
    user, title = writer(call.user), field(body, "title").strip()
    owner = field(body, "namespace", user.name)
    repos.check_repo_name(f"{owner}/x")
    if not 0 < len(title) < 60:
        raise refuse(400, "BadRequest", "`title` must have 1 to 59 characters")
    with call.hub.store.write() as db:
        call.hub.access.claim(db, user, owner)
        for row in db.execute("select body from collection where owner = ?", (owner,)):
            other = json.loads(row["body"])
            if other["title"] == title:
                raise refuse(409, "Conflict", "This collection already exists", slug=other["slug"])
        words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "collection"
        made = {
            "slug": f"{owner}/{words}-{secrets.token_hex(12)}",
            "title": title,
            "description": field(body, "description", ""),
            "owner": owner,
            "private": body.get("private") is True,
            "theme": "blue",
            "upvotes": 0,
            "position": 0,
            "items": [],
        }
        _save(db, made)
    return made


@router.get("/api/collections")
def list_collections(call: Asked, owner: str = "", limit: int = 1000) -> list[dict[str, Any]]:
    """The collections that the caller may see. Clients number them themselves."""
    with call.hub.store.read() as db:
        rows = db.execute("select owner, body from collection order by slug").fetchall()
        found = [
            _shown(call, db, json.loads(row["body"]))
            for row in rows
            if owner in ("", row["owner"])
            and (not json.loads(row["body"])["private"] or call.hub.access.owns(db, call.user, row["owner"]))
        ]
    return [{key: value for key, value in one.items() if key != "position"} for one in found[: max(limit, 0)]]


@router.get("/api/collections/{owner}/{slug}")
def get_collection(call: Asked) -> dict[str, Any]:
    """One collection."""
    with call.hub.store.read() as db:
        return _shown(call, db, _collection(call, db))


@router.patch("/api/collections/{owner}/{slug}")
def change_collection(call: Asked, body: Body) -> dict[str, Any]:
    """Title, description, private."""
    with call.hub.store.write() as db:
        made = _collection(call, db, "write")
        made["title"] = field(body, "title", made["title"])
        made["description"] = field(body, "description", made["description"])
        made["private"] = body.get("private", made["private"]) is True
        _save(db, made)
        return {"success": True, "data": _shown(call, db, made)}


@router.delete("/api/collections/{owner}/{slug}")
def delete_collection(call: Asked) -> dict[str, bool]:
    """Forget a collection; its repos stay."""
    with call.hub.store.write() as db:
        db.execute("delete from collection where slug = ?", (_collection(call, db, "write")["slug"],))
    return {"success": True}


@router.post("/api/collections/{owner}/{slug}/items")
def add_item(call: Asked, body: Body) -> dict[str, Any]:
    """Add a repo. Refuses with 409 where it is in already."""
    item = body.get("item")
    if not isinstance(item, dict):
        raise refuse(400, "BadRequest", "`item` must hold id and type")
    word, name = field(item, "type"), field(item, "id")
    kind = next((kind for kind, singular in KINDS.items() if singular == word), "")
    with call.hub.store.write() as db:
        made = _collection(call, db, "write")
        repo = call.hub.access.repo(db, call.user, kind, name, "see")
        if any(one["type"] == word and one["id"].lower() == name.lower() for one in made["items"]):
            raise refuse(409, "Conflict", f"{name} is already in this collection")
        new = {"_id": secrets.token_hex(12), "id": repo.name, "type": word, "note": field(body, "note", "")}
        made["items"].append(new)
        _save(db, made)
        return _shown(call, db, made)


@router.patch("/api/collections/{owner}/{slug}/items/{item}")
@router.delete("/api/collections/{owner}/{slug}/items/{item}")
def change_item(call: Asked, body: Body, item: str) -> dict[str, bool]:
    """Change an item's note or place, or remove it."""
    with call.hub.store.write() as db:
        made = _collection(call, db, "write")
        found = next((one for one in made["items"] if one["_id"] == item), None)
        if found is None:
            raise refuse(404, "NotFound", f"No item {item}")
        made["items"].remove(found)
        if call.request.method == "PATCH":
            found["note"] = field(body, "note", found["note"])
            place = body.get("position")
            made["items"].insert(min(place, 10**6) if isinstance(place, int) and place >= 0 else 10**6, found)
        _save(db, made)
    return {"success": True}
