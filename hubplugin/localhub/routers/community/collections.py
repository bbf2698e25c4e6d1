"""Routes of collections. A collection is stored as one JSON document, nearly as the API returns it."""

import html
import json
import re
import secrets
import sqlite3
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from hubplugin.localhub.contents import repos
from hubplugin.localhub.contents.repos import KIND_OF_TYPE
from hubplugin.localhub.dependencies import Context, JsonBody, RequestContext, page_response, string_field
from hubplugin.localhub.http_errors import http_error, not_supported
from hubplugin.localhub.timestamps import now, to_iso
from hubplugin.localhub.users import require_write_role
from hubplugin.localhub.validation import check_repo_id

router = APIRouter()

MAX_POSITION = 10**6  # means the end of the list
ID_LENGTH = 24  # hex digits at the end of a slug
LISTED_ITEMS = 4  # of each collection in a list
THEMES = ("orange", "blue", "green", "purple", "pink", "indigo")
Collection = dict[str, Any]


def _find(context: RequestContext, db: sqlite3.Connection, slug: str) -> Collection | None:
    """A collection that the sender may see. Its id at the end of the slug counts, since its title may have changed."""
    owner, collection_id = slug.partition("/")[0], slug[-ID_LENGTH:]
    query = f"select * from collection where owner = ? and substr(slug, -{ID_LENGTH}) = ?"
    row = db.execute(query, (owner, collection_id)).fetchone()
    collection: Collection = json.loads(row["body"]) if row else {}
    if row is None or (collection["private"] and not context.hub.access.owns(db, context.user, row["owner"])):
        return None
    return collection


def _load(context: RequestContext, db: sqlite3.Connection) -> Collection:
    """The collection in the URL path. Raises 401 and 404 where the sender may not see it."""
    slug = f"{context.path_param('owner')}/{context.path_param('slug')}"
    collection = _find(context, db, slug)
    if collection is None:
        raise http_error(404 if context.user else 401, "NotFound", f"No collection {slug}")
    return collection


def _load_to_change(context: RequestContext, db: sqlite3.Connection) -> Collection:
    """The collection in the URL path, where the sender owns it. Raises 401, 403 and 404."""
    collection = _load(context, db)
    user = require_write_role(context.user)
    if not context.hub.access.owns(db, user, collection["owner"]):
        raise http_error(403, "Forbidden", f"You don't have the rights to change {collection['slug']}")
    return collection


def _save(db: sqlite3.Connection, collection: Collection) -> None:
    """Store a collection under a slug that has its title. Its id, the end of the slug, stays."""
    old_slug, words = collection["slug"], re.sub(r"[^a-z0-9]+", "-", collection["title"].lower()).strip("-")
    collection["slug"] = f"{collection['owner']}/{words or 'collection'}-{old_slug[-ID_LENGTH:]}"
    collection["lastUpdated"] = to_iso(now())
    db.execute("delete from collection where slug = ?", (old_slug,))
    row = (collection["slug"], collection["owner"], json.dumps(collection))
    db.execute("insert or replace into collection values (?, ?, ?)", row)


def _response(context: RequestContext, db: sqlite3.Connection, collection: Collection) -> Collection:
    """The collection as the API returns it, without the items that the sender may not see."""
    items: list[dict[str, Any]] = []
    for item in collection["items"]:
        properties = _item_properties(context, db, item)
        if properties is not None:
            note = {"text": item["note"], "html": html.escape(item["note"])} if item["note"] else None
            items.append(item | properties | {"position": len(items), "note": note})
    return collection | {"items": items, "gating": False, "isUpvotedByUser": False}


def _item_properties(context: RequestContext, db: sqlite3.Connection, item: dict[str, Any]) -> dict[str, Any] | None:
    """What the API says of a repo or a collection in a collection; None where the sender may not see it."""
    if item["type"] == "collection":
        nested = _find(context, db, item["id"])
        shown = ("slug", "title", "description", "theme", "lastUpdated", "upvotes")
        return {key: nested[key] for key in shown} | {"numberItems": len(nested["items"])} if nested else None
    repo = repos.find(db, KIND_OF_TYPE.get(item["type"], ""), item["id"])
    if repo is None or not context.hub.access.can_view(db, context.user, repo):
        return None
    return {"author": repo.namespace, "private": repo.private, "gated": repo.gated or False, "repoType": item["type"]}


def _title_field(body: dict[str, Any], default: str | None = None) -> str:
    title = string_field(body, "title", default).strip()
    if not 0 < len(title) < 60:
        raise http_error(400, "BadRequest", "`title` must have 1 to 59 characters")
    return title


def _theme_field(body: dict[str, Any], default: str) -> str:
    theme = string_field(body, "theme", default)
    if theme not in THEMES:
        raise http_error(400, "BadRequest", f"`theme` must be one of {', '.join(THEMES)}")
    return theme


@router.post("/api/collections")
def create_collection(context: Context, body: JsonBody) -> dict[str, Any]:
    """Create a collection. Raises 409, with the slug, where the owner has one with this title."""
    user, title = require_write_role(context.user), _title_field(body)
    owner = string_field(body, "namespace", user.name)
    check_repo_id(f"{owner}/x")
    with context.hub.store.write() as db:
        context.hub.access.claim_namespace(db, user, owner)
        for row in db.execute("select body from collection where owner = ?", (owner,)):
            existing = json.loads(row["body"])
            if existing["title"] == title:
                raise http_error(409, "Conflict", "This collection already exists", slug=existing["slug"])
        collection: Collection = {
            "slug": secrets.token_hex(ID_LENGTH // 2),
            "title": title,
            "description": string_field(body, "description", "") or None,
            "owner": owner,
            "private": body.get("private") is True,
            "theme": _theme_field(body, "blue"),
            "upvotes": 0,
            "position": 0,
            "items": [],
        }
        _save(db, collection)
    return collection


@router.get("/api/collections")
def list_collections(context: Context, q: str = "", sort: str = "lastModified", limit: int = 100) -> JSONResponse:
    """The collections that the sender may see, with a few items of each. `owner` and `item` may be given repeatedly."""
    if sort not in ("lastModified", "trending", "upvotes"):
        raise http_error(400, "BadRequest", "`sort` must be lastModified, trending or upvotes")
    owners, wanted = (context.request.query_params.getlist(key) for key in ("owner", "item"))
    with context.hub.store.read() as db:
        rows = db.execute("select slug from collection").fetchall()
        visible = [_find(context, db, row["slug"]) for row in rows]
        collections = [_response(context, db, collection) for collection in visible if collection]
    listed = [
        # huggingface_hub passes a position of its own to each collection of a list.
        {key: value for key, value in collection.items() if key != "position"}
        | {"items": collection["items"][:LISTED_ITEMS]}
        for collection in collections
        if (not owners or collection["owner"] in owners)
        and (not wanted or any(f"{item['type']}s/{item['id']}" in wanted for item in collection["items"]))
        and q.lower() in f"{collection['title']} {collection['description'] or ''}".lower()
    ]
    # Nobody upvotes here, so that the other orders are this one too.
    return page_response(context, sorted(listed, key=lambda row: str(row["lastUpdated"]), reverse=True), limit)


@router.get("/api/collections/{owner}/{slug}")
def get_collection(context: Context) -> dict[str, Any]:
    """One collection."""
    with context.hub.store.read() as db:
        return _response(context, db, _load(context, db))


@router.patch("/api/collections/{owner}/{slug}")
def update_collection(context: Context, body: JsonBody) -> dict[str, Any]:
    """Change the title, the description, the theme or the visibility."""
    with context.hub.store.write() as db:
        collection = _load_to_change(context, db)
        collection["title"] = _title_field(body, collection["title"])
        collection["description"] = string_field(body, "description", collection["description"] or "") or None
        collection["theme"] = _theme_field(body, collection["theme"])
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
    """Add a repo or a collection. Raises 409 where the collection has it already, 501 for a paper."""
    requested = body.get("item")
    if not isinstance(requested, dict):
        raise http_error(400, "BadRequest", "`item` must hold id and type")
    repo_type, repo_id = string_field(requested, "type"), string_field(requested, "id")
    with context.hub.store.write() as db:
        collection = _load_to_change(context, db)
        if repo_type == "collection":
            nested = _find(context, db, repo_id)
            if nested is None:
                raise http_error(404, "NotFound", f"No collection {repo_id}")
            repo_id = nested["slug"]
        elif repo_type in KIND_OF_TYPE:
            repo_id = context.hub.access.authorize(db, context.user, KIND_OF_TYPE[repo_type], repo_id, "view").name
        else:
            raise not_supported(f"items of the type {repo_type!r}")
        if any(item["type"] == repo_type and item["id"].lower() == repo_id.lower() for item in collection["items"]):
            raise http_error(409, "Conflict", f"{repo_id} is already in this collection")
        note = string_field(body, "note", "")
        collection["items"].append({"_id": secrets.token_hex(12), "id": repo_id, "type": repo_type, "note": note})
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
