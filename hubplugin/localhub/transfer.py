"""Files out, and commits in: resolve, preupload, commit, the check of a card.

What a commit carries is stored first; then one transaction checks the rights, the parent and every path,
and moves the ref. Large files come through `uploads`.
"""

import base64
import binascii
import json
import re
import sqlite3
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse

from hubplugin.localhub import metadata, pulls, repos
from hubplugin.localhub.access import writer
from hubplugin.localhub.call import Asked, Body, Call, field, pieces
from hubplugin.localhub.refusal import missing_entry, refuse
from hubplugin.localhub.repos import Entry, Repo, Tree, check_path

router = APIRouter()

MAX_COMMIT = 256 * 2**20  # bytes of a commit's body; clients send at most some 100 MB of small files in one
LARGE = 10 * 2**20  # files from this size on are LFS, whatever they hold
LARGE_NAMES = re.compile(r"\.(safetensors|bin|pt|pth|gguf|onnx|npz|npy|parquet|arrow|gz|zip|tar|model)$", re.I)


@router.api_route("/{owner}/{name}/resolve/{rev}/{path:path}", methods=["GET", "HEAD"])
@router.api_route("/{kind}/{owner}/{name}/resolve/{rev}/{path:path}", methods=["GET", "HEAD"])
def resolve_file(call: Asked) -> FileResponse:
    """A file, whole or a range of it."""
    path = call.text("path")
    with call.hub.store.read() as db:
        commit = repos.resolve(db, call.repo(db, "files"), call.text("rev"))
    entry = commit.tree.get(path)
    if entry is None:
        raise missing_entry(path, commit.oid)
    headers = {
        "ETag": f'"{entry.etag}"',
        "X-Repo-Commit": commit.oid,
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}",
        "X-Content-Type-Options": "nosniff",
    }
    answer = FileResponse(call.hub.store.blob(entry.sha256), headers=headers, media_type="application/octet-stream")
    answer.chunk_size = 2**20
    return answer


@router.post("/api/{kind}/{owner}/{name}/preupload/{rev}")
def preupload(call: Asked, body: Body, create_pr: bool = False) -> dict[str, Any]:
    """How each file is to be sent, and the hash of what now stands at its path."""
    with call.hub.store.read() as db:
        repo = call.may_commit(db, create_pr)
        tree = repos.resolve(db, repo, call.text("rev")).tree
    answers = []
    listed = body.get("files")
    for file in listed if isinstance(listed, list) else []:
        if not isinstance(file, dict) or not isinstance(file.get("size"), int):
            raise refuse(400, "BadRequest", "`files` must hold path, sample and size")
        path = check_path(file.get("path"))
        mode = "lfs" if is_large(path, file["size"], str(file.get("sample", ""))) else "regular"
        oid = tree[path].etag if path in tree else None
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": answers}


def is_large(path: str, size: int, sample: str) -> bool:
    """Whether git would choke on it: large, or no text. `sample` is its beginning in base64."""
    if size == 0:
        return False
    try:
        binary = b"\0" in base64.b64decode(sample)
    except (ValueError, binascii.Error):
        binary = True
    return binary or size >= LARGE or bool(LARGE_NAMES.search(path))


@router.post("/api/{kind}/{owner}/{name}/commit/{rev}")
async def commit(call: Asked, create_pr: bool = False) -> JSONResponse:
    """One commit, all of it or nothing."""
    raw = b"".join([piece async for piece in pieces(call.request, MAX_COMMIT)])
    return JSONResponse(await run_in_threadpool(_commit, call, raw, create_pr))


def _commit(call: Call, raw: bytes, create_pr: bool) -> dict[str, Any]:
    with call.hub.store.read() as db:
        call.may_commit(db, create_pr)  # before anything is stored
    header, operations = _parse(raw)
    title, message = field(header, "summary", "") or "Update", field(header, "description", "")
    parent = field(header, "parentCommit", "")
    changes = [_change(call, name, value) for name, value in operations]
    with call.hub.store.write() as db:
        repo = call.may_commit(db, create_pr)
        author = writer(call.user).name
        ref = repos.ref_of(db, repo, call.text("rev"))
        more = {}
        if ref is None or ref.startswith("refs/tags/") or (create_pr and not ref.startswith("refs/heads/")):
            repos.resolve(db, repo, call.text("rev"))
            raise refuse(400, "BadRequest", "Commits go to a branch or to a pull request")
        if create_pr:
            base = ref.removeprefix("refs/heads/")
            num = pulls.discuss(db, repo, title, message, author, base, pull=True, status="open")
            ref = f"refs/pr/{num}"  # stands where its base stands, so the parent is checked against that
            more = {"pullRequestUrl": f"{call.web(repo)}/discussions/{num}"}

        def change(tree: Tree) -> Tree:
            for one in changes:
                one(db, repo, tree)
            return tree

        made = repos.commit(db, repo, ref, change, title, message, author, parent or None)
    return {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": f"{call.web(repo)}/commit/{made.oid}",
        **more,
    }


def _parse(raw: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """A commit's header and operations, one JSON object a line; removals first. Raises 400."""
    try:
        lines = [json.loads(line) for line in raw.splitlines() if line.strip()]
        items = [(str(line["key"]), line["value"]) for line in lines]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise refuse(400, "BadRequest", "The body is not a list of operations") from error
    if not items or items[0][0] != "header" or not all(isinstance(value, dict) for _, value in items):
        raise refuse(400, "BadRequest", "The first operation must be the header")
    return items[0][1], sorted(items[1:], key=lambda item: not item[0].startswith("deleted"))


Change = Callable[[sqlite3.Connection, Repo, Tree], None]


def _change(call: Call, name: str, value: dict[str, Any]) -> Change:
    """Store what an operation carries; what it does to a tree. Raises 400 and 422."""
    path = value.get("path")
    path = check_path(path.removesuffix("/") if name == "deletedFolder" and isinstance(path, str) else path)

    def link(db: sqlite3.Connection, repo: Repo, tree: Tree) -> None:
        sha256 = field(value, "oid")
        size = _object_size(db, repo, sha256)
        tree[path] = Entry(sha256, repos.git_oid(repos.pointer(sha256, size)), size, lfs=True)

    def delete(db: sqlite3.Connection, repo: Repo, tree: Tree) -> None:
        gone = [p for p in tree if p == path or (name == "deletedFolder" and p.startswith(f"{path}/"))]
        if not gone:
            raise refuse(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        for one in gone:
            del tree[one]

    if name == "file":
        data = _content(path, value)
        entry = Entry(call.hub.store.put(data), repos.git_oid(data), len(data), lfs=False)
        return lambda db, repo, tree: tree.update({path: entry})
    if name == "lfsFile":
        return link
    if name in ("deletedFile", "deletedFolder"):
        return delete
    raise refuse(400, "BadRequest", f"Unknown operation {name!r}")


def _content(path: str, value: dict[str, Any]) -> bytes:
    try:
        if value.get("encoding") == "base64":
            data = base64.b64decode(value.get("content", ""), validate=True)
        else:
            data = str(value.get("content", "")).encode()
    except (ValueError, TypeError) as error:
        raise refuse(400, "BadRequest", f"The content of {path} cannot be decoded") from error
    if path == "README.md":
        _, errors = metadata.front_matter(data.decode("utf-8", "replace"))
        if errors:
            raise refuse(400, "BadMetadata", f"Invalid metadata in README.md: {'; '.join(errors)}")
    return data


def _object_size(db: sqlite3.Connection, repo: Repo, sha256: str) -> int:
    """The size of an object that was uploaded to this very repo. Raises 400.

    Knowing the hash of a file in somebody's private repo does not make it yours.
    """
    row = db.execute("select size from object where repo = ? and sha256 = ?", (repo.id, sha256)).fetchone()
    if row is None:
        raise refuse(400, "MissingObject", f"The content of {sha256} was never uploaded to {repo.name}")
    return int(row["size"])


@router.post("/api/validate-yaml")
def validate_yaml(body: Body) -> JSONResponse:
    """Whether a README.md would be taken."""
    data, errors = metadata.front_matter(field(body, "content"))
    warnings = [] if data or errors else [{"message": "empty or missing yaml metadata in repo card"}]
    found = {"errors": [{"message": error} for error in errors], "warnings": warnings}
    return JSONResponse(found, 400 if errors else 200, {"X-Error-Code": "BadMetadata"} if errors else None)
