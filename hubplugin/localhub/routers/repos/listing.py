"""Routes that describe repos: one repo at one revision, and lists of repos with their filters."""

import re
import sqlite3
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.datastructures import QueryParams

from hubplugin.localhub.contents import git, metadata, model_files, repos
from hubplugin.localhub.contents.git import Commit, TreeEntry
from hubplugin.localhub.contents.repos import TYPE_OF_KIND, Repo
from hubplugin.localhub.dependencies import Context, RequestContext, page_response
from hubplugin.localhub.http_errors import entry_not_found, http_error, not_supported
from hubplugin.localhub.timestamps import to_iso
from hubplugin.localhub.users import require_user

router = APIRouter()

MAX_CARD_BYTES = 2**20  # the metadata of a larger README.md is not read
Info = dict[str, Any]
# Numbers that this hub does not count are 0 for all repos, so that the order stays: newest first.
SORT_KEYS: dict[str, Callable[[Info], Any]] = {
    "createdAt": lambda info: info["createdAt"],
    "lastModified": lambda info: info["lastModified"],
    "num_parameters": lambda info: (info["safetensors"] or {"total": 0})["total"],
    "mainSize": lambda info: info["usedStorage"],
    **dict.fromkeys(("downloads", "likes", "likes7d", "likes30d", "trendingScore"), lambda info: 0),
}
SIZE_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@router.get("/api/{kind:kind}/{owner}/{name}")
@router.get("/api/{kind:kind}/{owner}/{name}/revision/{rev:path}")
def repo_info(context: Context, blobs: bool = False) -> Info:
    """One repo at one revision; with `expand` only the properties that it names."""
    revision = context.path_param("rev") if "rev" in context.request.path_params else "HEAD"
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        commit = git.resolve(db, repo.id, revision)
    return _expand(context, _info(context, repo, commit, blobs))


@router.get("/api/models")
@router.get("/api/datasets")
@router.get("/api/spaces")
def list_repos(context: Context, author: str = "", sort: str = "", limit: int = 1000) -> JSONResponse:
    """The repos that the sender may see, newest first. Raises 400 for an unknown order, 501 for an unknown filter."""
    kind = context.request.url.path.rsplit("/", 1)[-1]
    if sort not in ("", "id", *SORT_KEYS):
        raise http_error(400, "BadRequest", f"`sort` must be one of id, {', '.join(SORT_KEYS)}")
    query = context.request.query_params
    _check_filters(query)
    infos = []
    with context.hub.store.read() as db:
        for repo in repos.list_by_kind(db, kind):
            if author in ("", repo.namespace) or author.lower() == repo.namespace.lower():
                if not context.hub.access.can_view(db, context.user, repo):
                    continue
                info = _info(context, repo, git.resolve(db, repo.id, "HEAD"))
                if _matches(query, info):
                    infos.append(info)
    if sort:
        descending = sort != "id" and query.get("direction") != "1"
        infos.sort(key=SORT_KEYS.get(sort, lambda info: info["id"]), reverse=descending)
    return page_response(context, [_expand(context, info) for info in infos], limit)


def _check_filters(query: QueryParams) -> None:
    """Raise 501 for a filter that this hub cannot apply, since its list would be wrong without it."""
    if query.get("apps") or query.get("linked"):
        raise not_supported("list of the apps and repos that use a model")


def _matches(query: QueryParams, info: Info) -> bool:
    """Whether a repo is what the query asks for. Of several values of a filter, all must hold."""
    tags = {tag for value in query.getlist("filter") for tag in value.split(",") if tag}
    size = (info["safetensors"] or {"total": -1})["total"]
    low, high = _parameter_range(query.get("num_parameters", ""))
    used = [(key, value) for key in ("models", "datasets") for value in query.getlist(key)]  # by a Space
    return (
        all(text.lower() in info["id"].lower() for text in query.getlist("search"))
        and tags <= set(info["tags"])
        and query.get("pipeline_tag") in (None, "", info["pipeline_tag"])
        and ("gated" not in query or bool(info["gated"]) == (query["gated"].lower() in ("true", "1")))
        and not (query.get("inference") or query.get("inference_provider"))  # no provider serves what is here
        and low <= size <= high
        and all(value in metadata.as_list(info["cardData"], key) for key, value in used)
    )


def _parameter_range(text: str) -> tuple[float, float]:
    """The limits in a filter such as min:6B,max:128B. Raises 400."""
    if not text:
        return float("-inf"), float("inf")
    limits = {"min": 0.0, "max": float("inf")}
    for part in text.split(","):
        match = re.fullmatch(r"(min|max):(\d+(?:\.\d+)?)([KMBT]?)", part.strip(), re.ASCII)
        if match is None:
            raise http_error(400, "BadRequest", "`num_parameters` must be of the form min:6B,max:128B")
        limits[match[1]] = float(match[2]) * SIZE_SUFFIXES[match[3]]
    return limits["min"], limits["max"]


@router.get("/api/settings/repositories")
@router.get("/api/organizations/{owner}/settings/repositories")
def list_own_repos(context: Context) -> list[Info]:
    """All repos in the sender's namespace, or in one that they own, with the bytes that they take."""
    namespace = context.request.path_params.get("owner") or require_user(context.user).name
    with context.hub.store.read() as db:
        if not context.hub.access.owns(db, require_user(context.user), namespace):
            raise http_error(403, "Forbidden", f"You don't have the rights to list the repos of {namespace}")
        own = [repo for kind in TYPE_OF_KIND for repo in repos.list_by_kind(db, kind)]
        own = [repo for repo in own if repo.namespace.lower() == namespace.lower()]
        items = [_storage_item(db, repo) for repo in own]
    total = sum(item["storage"] for item in items) or 1
    return [item | {"storagePercent": item["storage"] / total} for item in items]


def _storage_item(db: sqlite3.Connection, repo: Repo) -> Info:
    commit = git.resolve(db, repo.id, "HEAD")
    return {
        "id": repo.name,
        "type": TYPE_OF_KIND[repo.kind],
        "updatedAt": to_iso(commit.date),
        "visibility": "private" if repo.private else "public",
        "storage": _tree_bytes(commit),
    }


@router.get("/api/models/{owner}/{name}/safetensors-metadata/{path:path}")
def sharded_safetensors_metadata(context: Context) -> Info:
    """The index of sharded weights on main, and the headers of its shards."""
    path = context.path_param("path")
    with context.hub.store.read() as db:
        repo = context.repo(db, "download")
        commit = git.resolve(db, repo.id, "HEAD")
    index = model_files.read_json(context.hub.store.blobs, commit.tree, path)
    if index is None or not isinstance(index.get("weight_map"), dict):
        raise entry_not_found(path, commit.oid)
    headers = {}
    for shard in set(map(str, index["weight_map"].values())) & commit.tree.keys():
        headers[shard] = model_files.safetensors_header(context.hub.store.blob_path(commit.tree[shard].sha256)) or {}
    return {"index": {"metadata": index.get("metadata")}, "headers": headers}


def _expand(context: RequestContext, info: Info) -> Info:
    expanded = context.expanded()
    return {key: value for key, value in info.items() if key in ("_id", "id", *expanded)} if expanded else info


def _info(context: RequestContext, repo: Repo, commit: Commit, blobs: bool = False) -> Info:
    card_data = _card_data(context, commit)
    blob_folder = context.hub.store.blobs
    is_model = repo.kind == "models"
    tags = metadata.tags(card_data, repo.kind)
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
        "tags": list(dict.fromkeys([*tags, *model_files.format_tags(commit.tree)])) if is_model else tags,
        "cardData": card_data,
        "library_name": card_data.get("library_name"),
        "pipeline_tag": card_data.get("pipeline_tag"),
        "model-index": card_data.get("model-index"),
        "config": model_files.config(blob_folder, commit.tree) if is_model else None,
        "safetensors": model_files.parameters(blob_folder, commit.tree) if is_model else None,
        "sdk": card_data.get("sdk") if repo.kind == "spaces" else None,
        "usedStorage": _tree_bytes(commit),
        "siblings": [_sibling(path, entry, blobs) for path, entry in commit.tree.items()],
    }


def _tree_bytes(commit: Commit) -> int:
    return sum({entry.sha256: entry.size for entry in commit.tree.values()}.values())


def _card_data(context: RequestContext, commit: Commit) -> Info:
    readme = commit.tree.get("README.md")
    if readme is None or readme.size > MAX_CARD_BYTES:
        return {}
    path = context.hub.store.blob_path(readme.sha256)
    card_data, _ = metadata.parse_card(path.read_text(encoding="utf-8", errors="replace"))
    return card_data


def _sibling(path: str, entry: TreeEntry, blobs: bool) -> Info:
    """A file in the response of repo_info; with `blobs` its size and hashes too."""
    if not blobs:
        return {"rfilename": path}
    sibling: Info = {"rfilename": path, "size": entry.size, "blobId": entry.oid}
    if entry.lfs:
        sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return sibling
