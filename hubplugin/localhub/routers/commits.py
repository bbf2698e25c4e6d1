"""Routes that create commits: preupload, commit, and the validation of a repo card.

The content in a commit's body is stored first. Then one transaction checks permissions, parent and paths, and moves
the ref. Large files were uploaded before, by `lfs` or `xet`; a commit only links to them.
"""

import base64
import json
import re
import sqlite3
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from hubplugin.localhub import git, metadata, pull_requests, repos
from hubplugin.localhub.dependencies import Context, JsonBody, RequestContext, read_body, string_field
from hubplugin.localhub.git import CommitDetails, Tree, TreeEntry
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.pull_requests import NewDiscussion
from hubplugin.localhub.repos import Repo
from hubplugin.localhub.users import require_write_role
from hubplugin.localhub.validation import check_path

router = APIRouter()

MAX_COMMIT_BYTES = 256 * 2**20  # of the body; clients put at most about 100 MB of small files into one commit
LFS_MIN_BYTES = 10 * 2**20  # files of this size and larger are LFS files, whatever their content
LFS_NAMES = re.compile(r"\.(safetensors|bin|pt|pth|gguf|onnx|npz|npy|parquet|arrow|gz|zip|tar|model)$", re.I)

TreeChange = Callable[[sqlite3.Connection, Repo, Tree], None]  # what one operation of a commit does to a tree


@router.post("/api/{kind}/{owner}/{name}/preupload/{rev}")
def preupload(context: Context, body: JsonBody, create_pr: bool = False) -> dict[str, Any]:
    """For each file how to upload it (regular or LFS), and the oid of the current file at its path."""
    with context.hub.store.read() as db:
        repo = context.repo_for_commit(db, create_pr)
        tree = git.resolve(db, repo.id, context.path_param("rev")).tree
    response = []
    files = body.get("files")
    for file in files if isinstance(files, list) else []:
        if not isinstance(file, dict) or not isinstance(file.get("size"), int):
            raise http_error(400, "BadRequest", "`files` must hold path, sample and size")
        path = check_path(file.get("path"))
        mode = "lfs" if _is_lfs(path, file["size"], str(file.get("sample", ""))) else "regular"
        oid = tree[path].etag if path in tree else None
        response.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": response}


def _is_lfs(path: str, size: int, sample: str) -> bool:
    """Whether a file is large or binary. `sample` is the beginning of its content in base64."""
    if size == 0:
        return False
    try:
        binary = b"\0" in base64.b64decode(sample)
    except ValueError:
        binary = True
    return binary or size >= LFS_MIN_BYTES or bool(LFS_NAMES.search(path))


@router.post("/api/{kind}/{owner}/{name}/commit/{rev}")
async def commit(context: Context, create_pr: bool = False) -> JSONResponse:
    """Create a commit from a body with one JSON object per line."""
    raw = await read_body(context.request, MAX_COMMIT_BYTES)
    return JSONResponse(await run_in_threadpool(_commit, context, raw, create_pr))


def _commit(context: RequestContext, raw: bytes, create_pr: bool) -> dict[str, Any]:
    with context.hub.store.read() as db:
        context.repo_for_commit(db, create_pr)  # check the permission before anything is stored
    header, operations = _parse_operations(raw)
    title, message = string_field(header, "summary", "") or "Update", string_field(header, "description", "")
    parent = string_field(header, "parentCommit", "")
    changes = [_prepare_change(context, key, value) for key, value in operations]
    with context.hub.store.write() as db:
        repo = context.repo_for_commit(db, create_pr)
        details = CommitDetails(title, message, require_write_role(context.user).name)
        ref = _target_ref(db, repo, context.path_param("rev"), create_pr)
        response: dict[str, Any] = {"success": True}
        if create_pr:
            num = _open_pull_request(db, repo, ref, details)
            ref = f"refs/pr/{num}"  # points to the head of its base branch, so the check of the parent is the same
            response["pullRequestUrl"] = f"{context.repo_url(repo)}/discussions/{num}"
        if parent:
            git.check_parent(db, repo.id, ref, parent)

        def change_tree(tree: Tree) -> Tree:
            for change in changes:
                change(db, repo, tree)
            return tree

        new_commit = git.create_commit(db, repo.id, ref, change_tree, details)
    commit_url = f"{context.repo_url(repo)}/commit/{new_commit.oid}"
    return response | {"commitOid": new_commit.oid, "commitUrl": commit_url}


def _target_ref(db: sqlite3.Connection, repo: Repo, revision: str, create_pr: bool) -> str:
    """The ref to commit to, or the base branch of a new pull request. Raises 400 and 404."""
    ref = git.find_ref(db, repo.id, revision)
    if ref is None or ref.startswith("refs/tags/") or (create_pr and not ref.startswith("refs/heads/")):
        git.resolve(db, repo.id, revision)  # raises 404 where the revision does not exist at all
        raise http_error(400, "BadRequest", "Commits go to a branch or to a pull request")
    return ref


def _open_pull_request(db: sqlite3.Connection, repo: Repo, base_ref: str, details: CommitDetails) -> int:
    new = NewDiscussion(
        title=details.title,
        description=details.message,
        author=details.author,
        is_pull_request=True,
        status="open",
        base=base_ref.removeprefix("refs/heads/"),
    )
    return pull_requests.open_discussion(db, repo, new)


def _parse_operations(raw: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """The header and the operations (key, value) of a commit, deletions first. Raises 400."""
    try:
        lines = [json.loads(line) for line in raw.splitlines() if line.strip()]
        operations = [(str(line["key"]), line["value"]) for line in lines]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise http_error(400, "BadRequest", "The body is not a list of operations") from error
    if not operations or operations[0][0] != "header" or not all(isinstance(value, dict) for _, value in operations):
        raise http_error(400, "BadRequest", "The first operation must be the header")
    header = operations[0][1]
    return header, sorted(operations[1:], key=lambda operation: not operation[0].startswith("deleted"))


def _prepare_change(context: RequestContext, key: str, value: dict[str, Any]) -> TreeChange:
    """Store the content of an operation, and return what it does to a tree. Raises 400 and 422."""
    path = value.get("path")
    path = check_path(path.removesuffix("/") if key == "deletedFolder" and isinstance(path, str) else path)

    def add_lfs_file(db: sqlite3.Connection, repo: Repo, tree: Tree) -> None:
        sha256 = string_field(value, "oid")
        size = repos.object_size(db, repo, sha256)
        tree[path] = TreeEntry(sha256, git.blob_oid(git.lfs_pointer(sha256, size)), size, lfs=True)

    def delete(db: sqlite3.Connection, repo: Repo, tree: Tree) -> None:
        deleted = [p for p in tree if p == path or (key == "deletedFolder" and p.startswith(f"{path}/"))]
        if not deleted:
            raise http_error(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        for deleted_path in deleted:
            del tree[deleted_path]

    if key == "file":
        content = _decode_content(path, value)
        entry = TreeEntry(context.hub.store.add_bytes(content), git.blob_oid(content), len(content), lfs=False)
        return lambda db, repo, tree: tree.update({path: entry})
    if key == "lfsFile":
        return add_lfs_file
    if key in ("deletedFile", "deletedFolder"):
        return delete
    raise http_error(400, "BadRequest", f"Unknown operation {key!r}")


def _decode_content(path: str, value: dict[str, Any]) -> bytes:
    """The content of a regular file. Raises 400 where it is not valid base64, or a repo card with invalid metadata."""
    try:
        if value.get("encoding") == "base64":
            content = base64.b64decode(value.get("content", ""), validate=True)
        else:
            content = str(value.get("content", "")).encode()
    except (ValueError, TypeError) as error:
        raise http_error(400, "BadRequest", f"The content of {path} cannot be decoded") from error
    if path == "README.md":
        _, errors = metadata.parse_card(content.decode("utf-8", "replace"))
        if errors:
            raise http_error(400, "BadMetadata", f"Invalid metadata in README.md: {'; '.join(errors)}")
    return content


@router.post("/api/validate-yaml")
def validate_card(body: JsonBody) -> JSONResponse:
    """The errors and warnings that a commit of this README.md would meet."""
    card_data, errors = metadata.parse_card(string_field(body, "content"))
    warnings = [] if card_data or errors else [{"message": "empty or missing yaml metadata in repo card"}]
    response = {"errors": [{"message": error} for error in errors], "warnings": warnings}
    return JSONResponse(response, 400 if errors else 200, {"X-Error-Code": "BadMetadata"} if errors else None)
