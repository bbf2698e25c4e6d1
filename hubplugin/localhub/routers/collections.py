"""Routes of collections. A collection is stored as one JSON document, nearly as the API returns it."""

import json
import re
import secrets
import sqlite3
from typing import Any

from fastapi import APIRouter

from hubplugin.localhub import repos
from hubplugin.localhub.dependencies import Context, JsonBody, RequestContext, string_field
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.repos import KIND_OF_TYPE
from hubplugin.localhub.timestamps import now, to_iso
from hubplugin.localhub.users import require_write_role
from hubplugin.localhub.validation import check_repo_id

router = APIRouter()

MAX_POSITION = 10**6  # means the end of the list


def _load(context: RequestContext, db: sqlite3.Connection) -> dict[str, Any]:
    """The collection in the URL path. Raises 401 and 404 where the sender may not see it."""
    slug = f"{context.path_param('owner')}/{context.path_param('slug')}"
    row = db.execute("select * from collection where slug = ?", (slug,)).fetchone()
    collection: dict[str, Any] = json.loads(row["body"]) if row else {}
    if row is None or (collection["private"] and not context.hub.access.owns(db, context.user, row["owner"])):
        raise http_error(404 if context.user else 401, "NotFound", f"No collection {slug}")
    return collection


def _load_to_change(context: RequestContext, db: sqlite3.Connection) -> dict[str, Any]:
    """The collection in the URL path, where the sender owns it. Raises 401, 403 and 404."""
    collection = _load(context, db)
    user = require_write_role(context.user)
    if not context.hub.access.owns(db, user, collection["owner"]):
        raise http_error(403, "Forbidden", f"You don't have the rights to change {collection['slug']}")
    return collection


def _save(db: sqlite3.Connection, collection: dict[str, Any]) -> None:
    collection["lastUpdated"] = to_iso(now())
    row = (collection["slug"], collection["owner"], json.dumps(collection))
    db.execute("insert or replace into collection values (?, ?, ?)", row)


def _response(context: RequestContext, db: sqlite3.Connection, collection: dict[str, Any]) -> dict[str, Any]:
    """The collection as the API returns it, without the repos that the sender may not see."""
    items: list[dict[str, Any]] = []
    for item in collection["items"]:
        repo = repos.find(db, KIND_OF_TYPE.get(item["type"], ""), item["id"])
        if repo and context.hub.access.can_view(db, context.user, repo):
            note = {"text": item["note"]} if item["note"] else None
            items.append(item | {"position": len(items), "note": note})
    return collection | {"items": items}


@router.post("/api/collections")
def create_collection(context: Context, body: JsonBody) -> dict[str, Any]:
    """Create a collection. Raises 409, with the slug, where the owner has one with this title."""
    user, title = require_write_role(context.user), string_field(body, "title").strip()
    owner = string_field(body, "namespace", user.name)
    check_repo_id(f"{owner}/x")
    if not 0 < len(title) < 60:
        raise http_error(400, "BadRequest", "`title` must have 1 to 59 characters")
    with context.hub.store.write() as db:
        context.hub.access.claim_namespace(db, user, owner)
        for row in db.execute("select body from collection where owner = ?", (owner,)):
            existing = json.loads(row["body"])
            if existing["title"] == title:
                raise http_error(409, "Conflict", "This collection already exists", slug=existing["slug"])
        title_slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "collection"
        collection = {
            "slug": f"{owner}/{title_slug}-{secrets.token_hex(12)}",
            "title": title,
            "description": string_field(body, "description", ""),
            "owner": owner,
            "private": body.get("private") is True,
            "theme": "blue",
            "upvotes": 0,
            "position": 0,
            "items": [],
        }
        _save(db, collection)
    return collection


@router.get("/api/collections")
def list_collections(context: Context, owner: str = "", limit: int = 1000) -> list[dict[str, Any]]:
    """The collections that the sender may see."""
    with context.hub.store.read() as db:
        rows = db.execute("select owner, body from collection order by slug").fetchall()
        collections = [
            _response(context, db, json.loads(row["body"]))
            for row in rows
            if owner in ("", row["owner"])
            and (not json.loads(row["body"])["private"] or context.hub.access.owns(db, context.user, row["owner"]))
        ]
    # huggingface_hub passes a position of its own to each collection of a list.
    return [
        {key: value for key, value in collection.items() if key != "position"}
        for collection in collections[: max(limit, 0)]
    ]


@router.get("/api/collections/{owner}/{slug}")
def get_collection(context: Context) -> dict[str, Any]:
    """One collection."""
    with context.hub.store.read() as db:
        return _response(context, db, _load(context, db))


@router.patch("/api/collections/{owner}/{slug}")
def update_collection(context: Context, body: JsonBody) -> dict[str, Any]:
    """Change the title, the description or the visibility."""
    with context.hub.store.write() as db:
        collection = _load_to_change(context, db)
        collection["title"] = string_field(body, "title", collection["title"])
        collection["description"] = string_field(body, "description", collection["description"])
        collection["private"] = body.get("private", collection["private"]) is True
        _save(db, collection)
        return {"success": True, "data": _response(context, db, collection)}


@router.delete("/api/collections/{owner}/{slug}")
def delete_collection(context: Context) -> dict[str, bool]:
    """Delete a collection; its repos stay."""
    with context.hub.store.write() as db:
        collection = _load_to_change(context, db)
        db.execute("delete from collection where slug = ?", (collection["slug"],))
    return {"success": True}


@router.post("/api/collections/{owner}/{slug}/items")
def add_item(context: Context, body: JsonBody) -> dict[str, Any]:
    """Add a repo. Raises 409 where the collection has it already."""
    requested = body.get("item")
    if not isinstance(requested, dict):
        raise http_error(400, "BadRequest", "`item` must hold id and type")
    repo_type, repo_id = string_field(requested, "type"), string_field(requested, "id")
    with context.hub.store.write() as db:
        collection = _load_to_change(context, db)
        kind = KIND_OF_TYPE.get(repo_type, "")
        repo = context.hub.access.authorize(db, context.user, kind, repo_id, "view")
        if any(item["type"] == repo_type and item["id"].lower() == repo_id.lower() for item in collection["items"]):
            raise http_error(409, "Conflict", f"{repo_id} is already in this collection")
        note = string_field(body, "note", "")
        collection["items"].append({"_id": secrets.token_hex(12), "id": repo.name, "type": repo_type, "note": note})
        _save(db, collection)
        return _response(context, db, collection)


@router.patch("/api/collections/{owner}/{slug}/items/{item_id}")
@router.delete("/api/collections/{owner}/{slug}/items/{item_id}")
def update_or_delete_item(context: Context, body: JsonBody, item_id: str) -> dict[str, bool]:
    """PATCH changes an item's note or position; DELETE removes the item."""
    with context.hub.store.write() as db:
        collection = _load_to_change(context, db)
        items = collection["items"]
        item = next((item for item in items if item["_id"] == item_id), None)
        if item is None:
            raise http_error(404, "NotFound", f"No item {item_id}")
        items.remove(item)
        if context.request.method == "PATCH":
            item["note"] = string_field(body, "note", item["note"])
            position = body.get("position")
            if not isinstance(position, int) or position < 0:
                position = MAX_POSITION
            items.insert(min(position, MAX_POSITION), item)
        _save(db, collection)
    return {"success": True}
