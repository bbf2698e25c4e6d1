"""Routes of Xet uploads: an upload token for a repo, xorbs and shards.

Files are reconstructed from xorbs as soon as a shard describes them, and stored as ordinary objects.
"""

import re
import time
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from hubplugin.localhub.contents.repos import Repo
from hubplugin.localhub.dependencies import Context, Hub, RequestContext, read_body
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.transfers import uploads, xet
from hubplugin.localhub.transfers.uploads import MAX_FILE_BYTES, SIGNATURE_SECONDS

router = APIRouter()

MAX_SHARD_BYTES = 64 * 2**20


@router.get("/api/{kind:kind}/{owner}/{name}/xet-write-token/{rev:path}")
def xet_write_token(context: Context, create_pr: bool = False) -> JSONResponse:
    """The CAS URL for chunks of large files, and an upload token for this repo."""
    with context.hub.store.read() as db:
        # A client that is about to open a pull request does not know its revision yet and sends None.
        repo = context.repo_for_commit(db, create_pr or context.path_param("rev") == "None")
    xet.sweep(context.hub.xorbs / str(repo.id))
    headers = token_headers(context, repo)
    url, token, expires = headers.values()
    return JSONResponse({"casUrl": url, "accessToken": token, "exp": int(expires)}, headers=headers)


def token_headers(context: RequestContext, repo: Repo) -> dict[str, str]:
    """The CAS URL, and an upload token for one repo."""
    expires = int(time.time()) + SIGNATURE_SECONDS
    run_id = context.hub.run_id
    token = f"{repo.id}.{expires}.{uploads.sign(context.hub, 'xet', run_id, repo.id, expires)}"
    url = f"{context.base_url}/xet/{run_id}/{repo.id}"
    return {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}


def _xorb_folder(request: Request, run_id: str, repo: int) -> Path:
    """The folder of one repo's xorbs, where the upload token is valid. Raises 401 and 404.

    Repos do not share xorbs: a client could upload a wrong one, which would then become part of other repos.
    """
    hub: Hub = request.app.state.hub
    if run_id != hub.run_id:
        raise http_error(404, "NotFound", "The hub was restarted; this CAS URL is no longer valid")
    match = re.fullmatch(r"Bearer (\d{1,18})\.(\d{1,18})\.(\w+)", request.headers.get("authorization", ""), re.ASCII)
    token_repo, expires, signature = match.groups() if match else ("", "0", "")
    expected = uploads.sign(hub, "xet", run_id, token_repo, expires)
    if token_repo != str(repo) or not uploads.is_valid(signature, expected, int(expires)):
        raise http_error(401, "Unauthorized", "This upload token is invalid or has expired")
    folder = hub.xorbs / token_repo
    folder.mkdir(exist_ok=True)
    return folder


XorbFolder = Annotated[Path, Depends(_xorb_folder)]


@router.post("/xet/{run_id}/{repo}/v1/xorbs/default/{xorb}")
async def upload_xorb(request: Request, folder: XorbFolder, xorb: str) -> dict[str, bool]:
    """Store a xorb. Its content is checked when a shard refers to it."""
    if not re.fullmatch(r"[0-9a-f]{64}", xorb):
        raise http_error(400, "BadXet", "not the hash of a xorb")
    path = request.app.state.hub.store.temporary_path()
    try:
        await uploads.save_body(request, path, xet.MAX_XORB_BYTES)
        path.replace(folder / xorb)
    finally:
        path.unlink(missing_ok=True)
    return {"was_inserted": True}


@router.post("/xet/{run_id}/{repo}/v1/shards")
async def upload_shard(request: Request, folder: XorbFolder, repo: int) -> dict[str, int]:
    """Reconstruct, check and store the files that a shard describes, before the response."""
    shard = await read_body(request, MAX_SHARD_BYTES)
    await run_in_threadpool(_store_files, request.app.state.hub, folder, shard, repo)
    return {"result": 1}


def _store_files(hub: Hub, folder: Path, shard: bytes, repo_id: int) -> None:
    for file in xet.parse_shard(shard):
        if file.size > MAX_FILE_BYTES:
            raise http_error(413, "TooLarge", f"A file may have {MAX_FILE_BYTES} bytes")
        path = hub.store.temporary_path()
        try:
            places = xet.reconstruct(file, folder, path)
            uploads.add_object(hub, repo_id, path, file.sha256, file.size)
            xet.release(folder, places, hub.store.blob_path(file.sha256))
        finally:
            path.unlink(missing_ok=True)
