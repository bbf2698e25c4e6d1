"""Routes that download files: resolve."""

from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import FileResponse

from hubplugin.localhub import git
from hubplugin.localhub.dependencies import Context
from hubplugin.localhub.http_errors import entry_not_found

router = APIRouter()


@router.api_route("/{owner}/{name}/resolve/{rev}/{path:path}", methods=["GET", "HEAD"])
@router.api_route("/{kind}/{owner}/{name}/resolve/{rev}/{path:path}", methods=["GET", "HEAD"])
def resolve_file(context: Context) -> FileResponse:
    """A file, or a range of its bytes."""
    path = context.path_param("path")
    with context.hub.store.read() as db:
        repo = context.repo(db, "download")
        commit = git.resolve(db, repo.id, context.path_param("rev"))
    entry = commit.tree.get(path)
    if entry is None:
        raise entry_not_found(path, commit.oid)
    headers = {
        "ETag": f'"{entry.etag}"',
        "X-Repo-Commit": commit.oid,
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])}",
        "X-Content-Type-Options": "nosniff",
    }
    blob = context.hub.store.blob_path(entry.sha256)
    response = FileResponse(blob, headers=headers, media_type="application/octet-stream")
    response.chunk_size = 2**20  # fewer reads of large files than with starlette's 64 KiB
    return response
