"""Routes that download files: resolve, and raw, which has the pointer in place of an LFS file."""

import re
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from hubplugin.localhub.contents import git, repos
from hubplugin.localhub.contents.git import TreeEntry
from hubplugin.localhub.dependencies import Context, RequestContext
from hubplugin.localhub.http_errors import entry_not_found

router = APIRouter()


@router.api_route("/{owner}/{name}/resolve/{rest:path}", methods=["GET", "HEAD"])
@router.api_route("/{kind:kind}/{owner}/{name}/resolve/{rest:path}", methods=["GET", "HEAD"])
def resolve_file(context: Context) -> FileResponse:
    """A file, or a range of its bytes."""
    entry, headers = _find(context)
    return _blob_response(context, entry, headers)


@router.api_route("/{owner}/{name}/raw/{rest:path}", methods=["GET", "HEAD"])
@router.api_route("/{kind:kind}/{owner}/{name}/raw/{rest:path}", methods=["GET", "HEAD"])
def raw_file(context: Context) -> Response:
    """A file as git stores it, or a range of its bytes."""
    entry, headers = _find(context)
    if not entry.lfs:
        return _blob_response(context, entry, headers)
    pointer = git.lfs_pointer(entry.sha256, entry.size)
    headers |= {"ETag": f'"{entry.oid}"', "Content-Type": "text/plain; charset=utf-8", "Accept-Ranges": "bytes"}
    match = re.fullmatch(r"bytes=(\d{1,18})-(\d{0,18})", context.request.headers.get("range", ""), re.ASCII)
    if match is None:
        return Response(pointer, 200, headers)
    start = int(match[1])
    part = pointer[start : int(match[2]) + 1 if match[2] else None]
    if not part:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(pointer)}"})
    content_range = f"bytes {start}-{start + len(part) - 1}/{len(pointer)}"
    return Response(part, 206, headers | {"Content-Range": content_range})


def _find(context: RequestContext) -> tuple[TreeEntry, dict[str, str]]:
    """The file at the path in the URL, and the headers that say what it is. Raises 401, 403 and 404."""
    with context.hub.store.read() as db:
        repo = context.repo(db, "download")
        revision, path = context.revision_and_path(db, repo)
        commit = git.resolve(db, repo.id, revision)
        entry = commit.tree.get(path)
        if entry is None or (entry.lfs and not repos.has_object(db, repo, entry.sha256)):  # deleted for good
            raise entry_not_found(path, commit.oid)
    headers = {
        "ETag": f'"{entry.etag}"',
        "X-Repo-Commit": commit.oid,
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}",
        "X-Content-Type-Options": "nosniff",
    }
    return entry, headers


def _blob_response(context: RequestContext, entry: TreeEntry, headers: dict[str, str]) -> FileResponse:
    blob = context.hub.store.blob_path(entry.sha256)
    response = FileResponse(blob, headers=headers, media_type="application/octet-stream")
    response.chunk_size = 2**20  # fewer reads of large files than with starlette's 64 KiB
    return response
