"""Routes that create commits: preupload, commit, and the validation of a repo card.

The content in a commit's body is stored first. Then one transaction checks permissions, parent and paths, and moves
the ref. Large files were uploaded before, by `lfs` or `xet`; a commit only links to them.
"""

import base64
import json
import sqlite3
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse

from hubplugin.localhub.contents import attributes, discussions, git, metadata, repos
from hubplugin.localhub.contents.attributes import ATTRIBUTES_FILE, IGNORE_FILE
from hubplugin.localhub.contents.discussions import NewDiscussion
from hubplugin.localhub.contents.git import CommitDetails, Tree, TreeEntry
from hubplugin.localhub.contents.repos import Repo
from hubplugin.localhub.dependencies import Context, JsonBody, RequestContext, read_body, string_field
from hubplugin.localhub.http_errors import http_error, revision_not_found
from hubplugin.localhub.store import Store
from hubplugin.localhub.transfers.uploads import decode_file
from hubplugin.localhub.users import require_write_role
from hubplugin.localhub.validation import check_path

router = APIRouter()

MAX_COMMIT_BYTES = 256 * 2**20  # of the body; clients put at most about 100 MB of small files into one commit
LFS_MIN_BYTES = 10 * 2**20  # files of this size and larger are LFS files, whatever their content
MAX_RULES_BYTES = 2**20  # larger .gitattributes and .gitignore are not read

TreeChange = Callable[[sqlite3.Connection, Repo, Tree], None]  # what one operation of a commit does to a tree


@router.post("/api/{kind:kind}/{owner}/{name}/preupload/{rev:path}")
def preupload(context: Context, body: JsonBody, create_pr: bool = False) -> dict[str, Any]:
    """For each file how to upload it (regular or LFS), whether to ignore it, and the oid of the file at its path."""
    with context.hub.store.read() as db:
        repo = context.repo_for_commit(db, create_pr)
        tree = git.resolve(db, repo.id, context.path_param("rev")).tree
    # A .gitattributes or .gitignore that is about to be committed counts, else that of the revision.
    lfs_rules = string_field(body, "gitAttributes", _read_text(context.hub.store, tree, ATTRIBUTES_FILE))
    ignore_rules = string_field(body, "gitIgnore", _read_text(context.hub.store, tree, IGNORE_FILE))
    files = body.get("files")
    files = files if isinstance(files, list) else []
    if not all(isinstance(file, dict) and isinstance(file.get("size"), int) for file in files):
        raise http_error(400, "BadRequest", "`files` must hold path, sample and size")
    ignored = attributes.ignored(ignore_rules, [check_path(file.get("path")) for file in files])
    response = []
    for file in files:
        path, size, sample = file["path"], file["size"], str(file.get("sample", ""))
        lfs = size > 0 and (attributes.is_lfs(lfs_rules, path) or size >= LFS_MIN_BYTES or _is_binary(sample))
        item = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": path in ignored}
        response.append(item | {"oid": tree[path].etag if path in tree else None})
    return {"files": response}


def _read_text(store: Store, tree: Tree, path: str) -> str:
    """The text of a small file; empty where there is none."""
    entry = tree.get(path)
    if entry is None or entry.size > MAX_RULES_BYTES:
        return ""
    return store.blob_path(entry.sha256).read_text(encoding="utf-8", errors="replace")


def _is_binary(sample: str) -> bool:
    """Whether the beginning of a file, in base64, is that of a binary file."""
    try:
        return b"\0" in base64.b64decode(sample)
    except ValueError:
        return True


@router.post("/api/{kind:kind}/{owner}/{name}/commit/{rev:path}")
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
            before = dict(tree)
            for change in changes:
                change(db, repo, tree)
            _track_lfs_files(context.hub.store, before, tree)
            return tree

        new_commit = git.create_commit(db, repo.id, ref, change_tree, details)
        discussions.note_commit(db, repo, ref, new_commit)
    commit_url = f"{context.repo_url(repo)}/commit/{new_commit.oid}"
    return response | {"commitOid": new_commit.oid, "commitUrl": commit_url}


def _track_lfs_files(store: Store, before: Tree, tree: Tree) -> None:
    """Name LFS files in .gitattributes that no line there matches, as the Hub does."""
    rules = _read_text(store, tree, ATTRIBUTES_FILE)
    new = [path for path, entry in tree.items() if entry.lfs and before.get(path) != entry]
    untracked = [attributes.literal_pattern(path) for path in new if not attributes.is_lfs(rules, path)]
    if untracked:
        tree[ATTRIBUTES_FILE] = _add_file(store, attributes.with_lfs_paths(rules.encode(), untracked))


def _add_file(store: Store, content: bytes) -> TreeEntry:
    return TreeEntry(store.add_bytes(content), git.blob_oid(content), len(content), lfs=False)


def _target_ref(db: sqlite3.Connection, repo: Repo, revision: str, create_pr: bool) -> str:
    """The ref to commit to, or the base branch of a new pull request. Raises 400 and 404."""
    ref = git.find_ref(db, repo.id, revision)
    if create_pr and (ref is None or not ref.startswith("refs/heads/")):
        raise revision_not_found(revision)  # a pull request needs a branch, a commit is not enough
    if ref is None or ref.startswith("refs/tags/"):
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
    return discussions.open_discussion(db, repo, new)


def _parse_operations(raw: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """The header and the operations (key, value) of a commit, deletions first. Raises 400."""
    try:
        lines = [json.loads(line) for line in raw.split(b"\n") if line.strip()]
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

    def rename(db: sqlite3.Connection, repo: Repo, tree: Tree) -> None:
        old_path = check_path(value.get("oldPath"))
        if old_path not in tree:
            raise http_error(404, "EntryNotFound", f"A file with this name doesn't exist: {old_path}")
        tree[path] = tree.pop(old_path)

    def delete(db: sqlite3.Connection, repo: Repo, tree: Tree) -> None:
        deleted = [p for p in tree if p == path or p.startswith(f"{path}/")]
        if not deleted:
            raise http_error(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        for deleted_path in deleted:
            del tree[deleted_path]

    if key in ("file", "lfsFile") and value.get("oldPath") and not (value.get("content") or value.get("oid")):
        return rename
    if key == "file":
        entry = _add_file(context.hub.store, decode_file(path, value))
        return lambda db, repo, tree: tree.update({path: entry})
    if key == "lfsFile":
        return add_lfs_file
    if key in ("deletedFile", "deletedFolder"):
        return delete
    raise http_error(400, "BadRequest", f"Unknown operation {key!r}")


@router.post("/api/validate-yaml")
def validate_card(request: Request, body: JsonBody) -> Response:
    """The errors and warnings that a commit of this README.md would meet, as JSON or where it is asked for as text."""
    card_data, errors = metadata.parse_card(string_field(body, "content"))
    warnings = [] if card_data or errors else [{"message": "empty or missing yaml metadata in repo card"}]
    if request.headers.get("accept") == "text/plain":
        lines = [f"- Error: {error}" for error in errors] + [f"- Warning: {row['message']}" for row in warnings]
        return PlainTextResponse("\n".join(lines), 400 if errors else 200)
    response: dict[str, Any] = {"errors": [{"message": error} for error in errors], "warnings": warnings}
    if not errors:
        return JSONResponse(response)
    raise http_error(400, "BadMetadata", f"Invalid metadata in README.md: {'; '.join(errors)}", **response)
