"""Routes of a repo's life: create, duplicate, rename, settings, delete."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from hubplugin.licence_ids import LICENCE_IDS
from hubplugin.localhub.contents import attributes, git, metadata, repos
from hubplugin.localhub.contents.git import Tree, TreeEntry
from hubplugin.localhub.contents.repos import TYPE_OF_KIND, Repo
from hubplugin.localhub.dependencies import Context, JsonBody, RequestContext, kind_field, string_field
from hubplugin.localhub.http_errors import http_error, not_supported
from hubplugin.localhub.transfers.uploads import decode_file
from hubplugin.localhub.users import require_write_role
from hubplugin.localhub.validation import check_path, check_repo_id

router = APIRouter()

SPACE_SETTINGS = ("hardware", "sleepTimeSeconds", "secrets", "variables", "volumes", "template")


def _repo_id_field(context: RequestContext, body: dict[str, Any]) -> str:
    """The repo id from `name` and `organization`; without one the repo is the sender's own."""
    name = string_field(body, "name")
    namespace = string_field(body, "organization", "") or require_write_role(context.user).name
    return check_repo_id(name if "/" in name else f"{namespace}/{name}")


def _private_field(body: dict[str, Any]) -> bool | None:
    """Whether `visibility` or `private` says private; None where neither is there.

    Raises 400 for other values, since the repo would be public.
    """
    if body.get("visibility") not in (None, "public", "private") or not isinstance(body.get("private"), bool | None):
        raise http_error(400, "BadRequest", "`visibility` must be public or private, `private` true or false")
    if body.get("visibility") is None and body.get("private") is None:
        return None
    return body.get("visibility") == "private" or body.get("private") is True


@router.post("/api/repos/create")
def create_repo(context: Context, body: JsonBody) -> JSONResponse:
    """Create a repo with the Hub's .gitattributes, and with the files and the licence that are given."""
    require_write_role(context.user)
    kind, repo_id = kind_field(body), _repo_id_field(context, body)
    _refuse_space_settings(body)
    tree = _initial_tree(context, kind, repo_id, body)
    return _create(context, kind, repo_id, bool(_private_field(body)), tree)


@router.post("/api/{kind:kind}/{owner}/{name}/duplicate")
def duplicate_repo(context: Context, body: JsonBody) -> JSONResponse:
    """Create a repo with the files that another one has on main."""
    repo_id = check_repo_id(string_field(body, "repository"))
    _refuse_space_settings(body)
    with context.hub.store.read() as db:
        source = context.repo(db, "download")
        tree = git.resolve(db, source.id, "HEAD").tree
    private = _private_field(body)
    return _create(context, source.kind, repo_id, source.private if private is None else private, tree, source)


def _refuse_space_settings(body: dict[str, Any]) -> None:
    given = [key for key in SPACE_SETTINGS if body.get(key)]
    if given:
        raise not_supported(f"Spaces that run, so `{given[0]}` cannot be set")


def _create(
    context: RequestContext, kind: str, repo_id: str, private: bool, tree: Tree, source: Repo | None = None
) -> JSONResponse:
    """Create a repo with the files in a tree, whose blobs exist. Raises 403, and 409 where the repo exists."""
    user = require_write_role(context.user)
    with context.hub.store.write() as db:
        context.hub.access.claim_namespace(db, user, repo_id.split("/")[0])
        existing = repos.find(db, kind, repo_id)
        title = f"Duplicate from {source.name}" if source else "initial commit"
        repo = existing or repos.create(db, kind, repo_id, private, user.name, tree, title)
        if source and not existing:
            repos.copy_objects(db, source, repo, {entry.sha256 for entry in tree.values() if entry.lfs})
    response: dict[str, Any] = {"url": context.repo_url(repo), "name": repo.name, "id": repo.name}
    if existing:  # with exist_ok, clients read the URL from the error
        message = f"You already created this {TYPE_OF_KIND[kind]} repo: {repo.name}"
        raise http_error(409, "Conflict", message, **response)
    return JSONResponse(response)


def _initial_tree(context: RequestContext, kind: str, repo_id: str, body: dict[str, Any]) -> Tree:
    """The files of a new repo, as blobs and as a tree. Raises 400 and 422."""
    files = {attributes.ATTRIBUTES_FILE: attributes.default_attributes(kind)}
    licence = string_field(body, "license", "")
    if licence and licence not in LICENCE_IDS:
        raise http_error(400, "BadRequest", metadata.licence_error(licence))
    if licence or kind == "spaces":
        title = repo_id.split("/")[1]
        space = {"title": title, "sdk": string_field(body, "sdk", "static"), "pinned": False}
        card_data = (space if kind == "spaces" else {}) | ({"license": licence} if licence else {})
        files["README.md"] = metadata.new_card(card_data)
    given = body.get("files") or []
    if not isinstance(given, list) or not all(isinstance(file, dict) for file in given):
        raise http_error(400, "BadRequest", "`files` must be a list of files")
    for file in given:
        path = check_path(file.get("path"))
        files[path] = decode_file(path, file)
    return {
        path: TreeEntry(context.hub.store.add_bytes(content), git.blob_oid(content), len(content), lfs=False)
        for path, content in files.items()
    }


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
    """Rename a repo, or move it to another namespace. Files can still be downloaded under the former name."""
    kind, new_id = kind_field(body), check_repo_id(string_field(body, "toRepo"))
    with context.hub.store.write() as db:
        repo = context.hub.access.authorize(db, context.user, kind, string_field(body, "fromRepo"), "write")
        context.hub.access.claim_namespace(db, context.user, new_id.split("/")[0])
        existing = repos.find(db, kind, new_id)
        if existing and existing.id != repo.id:
            raise http_error(409, "Conflict", f"A {TYPE_OF_KIND[kind]} repository called {new_id} already exists")
        repos.rename(db, repo, new_id)
    return {"success": True}


@router.put("/api/{kind:kind}/{owner}/{name}/settings")
def update_settings(context: Context, body: JsonBody) -> dict[str, Any]:
    """Change whether a repo is private or gated."""
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        given, gated = _private_field(body), repo.gated
        private = repo.private if given is None else given
        if body.get("gated") is not None:
            if body["gated"] not in ("auto", "manual", False):
                raise http_error(400, "BadRequest", "`gated` must be auto, manual or false")
            gated = body["gated"] or None
        db.execute("update repo set private = ?, gated = ? where id = ?", (private, gated, repo.id))
    return {"private": private, "gated": gated or False}
