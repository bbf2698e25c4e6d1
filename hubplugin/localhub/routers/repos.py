"""Routes of repos: create, delete, move, settings, info and list."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from hubplugin.localhub import git, metadata, repos
from hubplugin.localhub.dependencies import Context, JsonBody, RequestContext, kind_field, string_field
from hubplugin.localhub.git import Commit, TreeEntry
from hubplugin.localhub.http_errors import http_error, repo_not_found
from hubplugin.localhub.repos import TYPE_OF_KIND, Repo
from hubplugin.localhub.timestamps import to_iso
from hubplugin.localhub.users import require_write_role
from hubplugin.localhub.validation import check_repo_id

router = APIRouter()

MAX_CARD_BYTES = 2**20  # the metadata of a larger README.md is not read


def _repo_id_field(context: RequestContext, body: dict[str, Any]) -> str:
    """The repo id from `name` and `organization`; without one the repo is the sender's own."""
    name = string_field(body, "name")
    namespace = string_field(body, "organization", "") or require_write_role(context.user).name
    return check_repo_id(name if "/" in name else f"{namespace}/{name}")


def _private_field(body: dict[str, Any]) -> bool:
    """Whether `visibility` or `private` says private. Raises 400 for other values, since the repo would be public."""
    if body.get("visibility") not in (None, "public", "private") or not isinstance(body.get("private"), bool | None):
        raise http_error(400, "BadRequest", "`visibility` must be public or private, `private` true or false")
    return body.get("visibility") == "private" or body.get("private") is True


@router.post("/api/repos/create")
def create_repo(context: Context, body: JsonBody) -> JSONResponse:
    """Create a repo with one empty commit. Raises 409 where it exists."""
    user = require_write_role(context.user)
    kind, repo_id = kind_field(body), _repo_id_field(context, body)
    with context.hub.store.write() as db:
        context.hub.access.claim_namespace(db, user, repo_id.split("/")[0])
        existing = repos.find(db, kind, repo_id)
        repo = existing or repos.create(db, kind, repo_id, _private_field(body), user.name)
    response: dict[str, Any] = {"url": context.repo_url(repo), "name": repo.name, "id": repo.name}
    if existing:  # with exist_ok, clients read the URL from the error
        message = f"You already created this {TYPE_OF_KIND[kind]} repo: {repo.name}"
        raise http_error(409, "Conflict", message, **response)
    return JSONResponse(response)


@router.delete("/api/repos/delete")
def delete_repo(context: Context, body: JsonBody) -> dict[str, bool]:
    """Delete a repo and its history. Its blobs stay."""
    with context.hub.store.write() as db:
        kind, repo_id = kind_field(body), _repo_id_field(context, body)
        repo = context.hub.access.authorize(db, context.user, kind, repo_id, "write")
        db.execute("delete from repo where id = ?", (repo.id,))
    return {"success": True}


@router.post("/api/repos/move")
def move_repo(context: Context, body: JsonBody) -> dict[str, Any]:
    """Rename a repo, or move it to another namespace."""
    kind, new_id = kind_field(body), check_repo_id(string_field(body, "toRepo"))
    with context.hub.store.write() as db:
        repo = context.hub.access.authorize(db, context.user, kind, string_field(body, "fromRepo"), "write")
        context.hub.access.claim_namespace(db, context.user, new_id.split("/")[0])
        existing = repos.find(db, kind, new_id)
        if existing and existing.id != repo.id:
            raise http_error(409, "Conflict", f"{new_id} already exists")
        db.execute("update repo set name = ? where id = ?", (new_id, repo.id))
    return {"success": True}


@router.put("/api/{kind}/{owner}/{name}/settings")
def update_settings(context: Context, body: JsonBody) -> dict[str, Any]:
    """Change whether a repo is private or gated."""
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        private, gated = repo.private, repo.gated
        if body.get("visibility") is not None or body.get("private") is not None:
            private = _private_field(body)
        if body.get("gated") is not None:
            if body["gated"] not in ("auto", "manual", False):
                raise http_error(400, "BadRequest", "`gated` must be auto, manual or false")
            gated = body["gated"] or None
        db.execute("update repo set private = ?, gated = ? where id = ?", (private, gated, repo.id))
    return {"private": private, "gated": gated or False}


@router.get("/api/{kind}/{owner}/{name}")
@router.get("/api/{kind}/{owner}/{name}/revision/{rev}")
def repo_info(context: Context, blobs: bool = False) -> dict[str, Any]:
    """One repo at one revision. `expand` is ignored: the response always has all properties."""
    revision = context.path_param("rev") if "rev" in context.request.path_params else "HEAD"
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        commit = git.resolve(db, repo.id, revision)
    return _info_response(context, repo, commit, blobs)


@router.get("/api/models")
@router.get("/api/datasets")
@router.get("/api/spaces")
def list_repos(context: Context, author: str = "", search: str = "", limit: int = 1000) -> list[dict[str, Any]]:
    """The repos that the sender may see, newest first. A repo must have all tags given by `filter=`."""
    kind = context.request.url.path.rsplit("/", 1)[-1]
    required_tags = set(context.request.query_params.getlist("filter"))
    response = []
    with context.hub.store.read() as db:
        for repo in repos.list_by_kind(db, kind):
            if (author and repo.namespace.lower() != author.lower()) or search.lower() not in repo.name.lower():
                continue
            if not context.hub.access.can_view(db, context.user, repo):
                continue
            info = _info_response(context, repo, git.resolve(db, repo.id, "HEAD"))
            if required_tags <= set(info["tags"]):
                response.append(info)
    return response[: max(limit, 0)]


def _info_response(context: RequestContext, repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    card_data = _card_data(context, commit)
    return {
        "_id": str(repo.id),
        "id": repo.name,
        "modelId": repo.name,
        "author": repo.namespace,
        "sha": commit.oid,
        "createdAt": to_iso(repo.created),
        "lastModified": to_iso(commit.date),
        "private": repo.private,
        "gated": repo.gated or False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": metadata.tags(card_data),
        "cardData": card_data,
        "library_name": card_data.get("library_name"),
        "pipeline_tag": card_data.get("pipeline_tag"),
        "model-index": card_data.get("model-index"),
        "usedStorage": sum({entry.sha256: entry.size for entry in commit.tree.values()}.values()),
        "siblings": [_sibling(path, entry, blobs) for path, entry in commit.tree.items()],
    }


def _card_data(context: RequestContext, commit: Commit) -> dict[str, Any]:
    readme = commit.tree.get("README.md")
    if readme is None or readme.size > MAX_CARD_BYTES:
        return {}
    path = context.hub.store.blob_path(readme.sha256)
    card_data, _ = metadata.parse_card(path.read_text(encoding="utf-8", errors="replace"))
    return card_data


def _sibling(path: str, entry: TreeEntry, blobs: bool) -> dict[str, Any]:
    """A file in the response of repo_info; with `blobs` its size and hashes too."""
    if not blobs:
        return {"rfilename": path}
    sibling: dict[str, Any] = {"rfilename": path, "size": entry.size, "blobId": entry.oid}
    if entry.lfs:
        sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return sibling


@router.get("/api/{kind}/{name}")
@router.api_route("/{name}/resolve/{path:path}", methods=["GET", "HEAD"])
def repo_without_namespace(context: Context) -> None:
    """A repo id without a namespace, such as gpt2. This hub has no such repos."""
    raise repo_not_found(authenticated=context.user is not None)
