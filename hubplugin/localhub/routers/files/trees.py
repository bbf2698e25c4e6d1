"""Routes of trees: list the files and folders of a revision, and look up single paths."""

import sqlite3
from typing import Any

from fastapi import APIRouter

from hubplugin.localhub.contents import git
from hubplugin.localhub.contents.git import Commit, TreeEntry
from hubplugin.localhub.contents.repos import Repo
from hubplugin.localhub.dependencies import Context, JsonBody
from hubplugin.localhub.http_errors import entry_not_found
from hubplugin.localhub.timestamps import to_iso

router = APIRouter()


@router.get("/api/{kind:kind}/{owner}/{name}/tree/{rest:path}")
def list_tree(context: Context, recursive: bool = False, expand: bool = False) -> list[dict[str, Any]]:
    """The files and folders in a folder; with `expand` also the last commit of each."""
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        revision, path = context.revision_and_path(db, repo)
        path = path.strip("/")
        prefix = f"{path}/" if path else ""
        commit = git.resolve(db, repo.id, revision)
        items = _folder_items(commit)
        if path and path not in items:
            raise entry_not_found(path, commit.oid)
        items |= _file_items(commit)
        listed = [
            items[item_path]
            for item_path in sorted(items)
            if item_path.startswith(prefix) and (recursive or "/" not in item_path.removeprefix(prefix))
        ]
        if expand:
            _add_last_commits(db, repo, commit, listed)
    return listed


@router.post("/api/{kind:kind}/{owner}/{name}/paths-info/{rev:path}")
def paths_info(context: Context, body: JsonBody) -> list[dict[str, Any]]:
    """The files and folders at the given paths. Paths that do not exist are left out.

    Only here LFS files have a xetHash, without which clients copy none to another repo. In a list of files it would
    make clients download all of them by Xet, and HTTP is enough.
    """
    requested = body.get("paths", [])
    if not isinstance(requested, list):
        requested = [requested]
    paths = dict.fromkeys(str(path).strip("/") for path in requested)  # without duplicates, in order
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        commit = git.resolve(db, repo.id, context.path_param("rev"))
        items = _folder_items(commit) | _file_items(commit)
        existing = [items[path] for path in paths if path in items]
        if str(body.get("expand", [""])).lower() in ("true", "['true']"):  # JSON or form
            _add_last_commits(db, repo, commit, existing)
    return [item | {"xetHash": item["lfs"]["oid"]} if "lfs" in item else item for item in existing]


def _file_items(commit: Commit) -> dict[str, dict[str, Any]]:
    """The items of all files, by path."""
    return {path: _file_item(path, entry) for path, entry in commit.tree.items()}


def _file_item(path: str, entry: TreeEntry) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.lfs:
        item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return item


def _folder_items(commit: Commit) -> dict[str, dict[str, Any]]:
    """The items of all folders, by path. The oid of a folder is a hash of what is in it."""
    content: dict[str, list[str]] = {}
    for path, entry in commit.tree.items():
        for count in range(1, path.count("/") + 1):
            content.setdefault(path.rsplit("/", count)[0], []).append(f"{path}:{entry.oid}")
    return {
        path: {"type": "directory", "oid": git.blob_oid("\n".join(files).encode()), "size": 0, "path": path}
        for path, files in content.items()
    }


def _add_last_commits(db: sqlite3.Connection, repo: Repo, commit: Commit, items: list[dict[str, Any]]) -> None:
    last_commits = git.last_commits(db, repo.id, commit, {item["path"] for item in items})
    for item in items:
        last_commit = last_commits[item["path"]]
        item["lastCommit"] = {
            "id": last_commit.oid,
            "title": last_commit.title,
            "date": to_iso(last_commit.date),
        }
