"""Routes of the LFS files that a repo has in any of its commits: list them, delete them for good, copy them."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from hubplugin.localhub.contents import git, repos
from hubplugin.localhub.contents.repos import KIND_OF_TYPE
from hubplugin.localhub.dependencies import Context, JsonBody, page_response, string_field
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.timestamps import to_iso

router = APIRouter()


@router.get("/api/{kind:kind}/{owner}/{name}/lfs-files")
def list_lfs_files(context: Context, limit: int = 1000) -> JSONResponse:
    """Every LFS file of the repo with a path and a ref where it stands, those of branches first."""
    found: dict[str, dict[str, Any]] = {}
    with context.hub.store.read() as db:
        repo = context.repo(db, "write")
        objects = {row["sha256"] for row in db.execute("select sha256 from object where repo = ?", (repo.id,))}
        refs = git.list_refs(db, repo.id, "refs/")
        for ref in sorted(refs, key=lambda ref: (ref != "heads/main", not ref.startswith("heads/"), ref)):
            for commit in git.history(db, repo.id, git.get_commit(db, repo.id, refs[ref])):
                for path, entry in commit.tree.items():
                    if entry.lfs and entry.sha256 in objects:
                        item = {"filename": path, "ref": f"refs/{ref}", "oid": entry.sha256, "size": entry.size}
                        known = found.setdefault(entry.sha256, item | {"fileOid": entry.sha256})
                        known["pushedAt"] = to_iso(commit.date)  # in the end that of the oldest commit
    return page_response(context, list(found.values()), limit)


@router.post("/api/{kind:kind}/{owner}/{name}/lfs-files/batch")
def delete_lfs_files(context: Context, body: JsonBody) -> dict[str, bool]:
    """Delete LFS files for good, and with `rewriteHistory` all commits' mentions of them. Their blobs stay on disk."""
    deletions = body.get("deletions")
    sha256s = deletions.get("sha") if isinstance(deletions, dict) else None
    if not isinstance(deletions, dict) or not isinstance(sha256s, list) or not all(isinstance(s, str) for s in sha256s):
        raise http_error(400, "BadRequest", "`deletions` must hold sha, a list, and rewriteHistory")
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        if deletions.get("rewriteHistory", True) is not False:
            git.remove_lfs_files(db, repo.id, set(sha256s))
        db.executemany("delete from object where repo = ? and sha256 = ?", [(repo.id, sha) for sha in sha256s])
    return {"success": True}


@router.post("/api/{kind:kind}/{owner}/{name}/lfs-files/duplicate")
def duplicate_lfs_files(context: Context, body: JsonBody) -> dict[str, Any]:
    """Give another repo LFS files of this one, so that a commit there can link to them without an upload."""
    target, files = body.get("target"), body.get("files")
    if not isinstance(target, dict) or not isinstance(files, list) or not all(isinstance(f, dict) for f in files):
        raise http_error(400, "BadRequest", "`target` must hold type and name, and `files` must be a list")
    sha256s = {string_field(file, "sha256") for file in files}
    kind = KIND_OF_TYPE.get(string_field(target, "type"), "")
    failed = []
    with context.hub.store.write() as db:
        source = context.repo(db, "download")
        to_repo = context.hub.access.authorize(db, context.user, kind, string_field(target, "name"), "contribute")
        for sha256 in sorted(sha256s):
            if repos.has_object(db, source, sha256):
                repos.copy_objects(db, source, to_repo, [sha256])
            else:
                failed.append({"sha256": sha256, "error": f"{source.name} has no such LFS file"})
    return {"success": not failed, "failed": failed}
