"""Routes of Xet: tokens for a repo, uploads of xorbs and shards, downloads.

Uploaded files are reconstructed from xorbs as soon as a shard describes them, and stored as ordinary objects.
"""

import re
import time
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from hubplugin.localhub.contents.repos import Repo
from hubplugin.localhub.dependencies import Context, Hub, RequestContext, read_body
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.transfers import uploads, xet, xet_downloads
from hubplugin.localhub.transfers.uploads import MAX_FILE_BYTES, SIGNATURE_SECONDS

router = APIRouter()

MAX_SHARD_BYTES = 64 * 2**20


@router.get("/api/{kind:kind}/{owner}/{name}/xet-write-token/{rev:path}")
def xet_write_token(context: Context, create_pr: bool = False) -> JSONResponse:
    """The CAS URL for chunks of large files, and an upload token for this repo."""
    with context.hub.store.read() as db:
        # A client that is about to open a pull request does not know its revision yet and sends None.
        repo = context.repo_for_commit(db, create_pr or context.path_param("rev") == "None")
    return _token_response(context, repo, "xet")


@router.get("/api/{kind:kind}/{owner}/{name}/xet-read-token/{rev:path}")
def xet_read_token(context: Context) -> JSONResponse:
    """The CAS URL for files of this repo, and a token to download them."""
    with context.hub.store.read() as db:
        repo = context.repo(db, "download")
    return _token_response(context, repo, "xet-read")


def _token_response(context: RequestContext, repo: Repo, action: str) -> JSONResponse:
    headers = token_headers(context, repo, action)
    url, token, expires = headers.values()
    return JSONResponse({"casUrl": url, "accessToken": token, "exp": int(expires)}, headers=headers)


def token_headers(context: RequestContext, repo: Repo, action: str = "xet") -> dict[str, str]:
    """The CAS URL, and a token for one repo: to upload (action xet) or to download (xet-read)."""
    expires = int(time.time()) + SIGNATURE_SECONDS
    run_id = context.hub.run_id
    token = f"{repo.id}.{expires}.{uploads.sign(context.hub, action, run_id, repo.id, expires)}"
    url = f"{context.base_url}/xet/{run_id}/{repo.id}"
    return {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}


def _check_token(request: Request, run_id: str, repo: int, action: str) -> Hub:
    """The hub, where the token in a request allows the action on the repo. Raises 401 and 404."""
    hub: Hub = request.app.state.hub
    if run_id != hub.run_id:
        raise http_error(404, "NotFound", "The hub was restarted; this CAS URL is no longer valid")
    match = re.fullmatch(r"Bearer (\d{1,18})\.(\d{1,18})\.(\w+)", request.headers.get("authorization", ""), re.ASCII)
    token_repo, expires, signature = match.groups() if match else ("", "0", "")
    expected = uploads.sign(hub, action, run_id, token_repo, expires)
    if token_repo != str(repo) or not uploads.is_valid(signature, expected, int(expires)):
        raise http_error(401, "Unauthorized", "This Xet token is invalid or has expired")
    return hub


def _xorb_folder(request: Request, run_id: str, repo: int) -> Path:
    """The folder of one repo's xorbs, where the upload token is valid. Raises 401 and 404.

    Repos do not share xorbs: a client could upload a wrong one, which would then become part of other repos.
    """
    folder = _check_token(request, run_id, repo, "xet").xorbs / str(repo)
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


@router.get("/xet/{run_id}/{repo}/v1/reconstructions/{sha256}")
def reconstruction(request: Request, run_id: str, repo: int, sha256: str) -> JSONResponse:
    """How to put a file, or a range of its bytes, together from xorbs."""
    hub = _check_token(request, run_id, repo, "xet-read")
    with hub.store.read() as db:
        row = db.execute("select size from object where repo = ? and sha256 = ?", (repo, sha256)).fetchone()
    if row is None:
        raise http_error(404, "NotFound", f"No file {sha256}")
    match = re.fullmatch(r"bytes=(\d{1,18})-(\d{0,18})", request.headers.get("range", "bytes=0-"), re.ASCII)
    start, stop = (int(match[1]), int(match[2] or row["size"] - 1) + 1) if match else (0, row["size"])
    if start >= row["size"] > 0:
        raise http_error(416, "BadRange", f"The file has {row['size']} bytes")
    expires = int(time.time()) + SIGNATURE_SECONDS
    folder = f"{str(request.base_url).rstrip('/')}/xet/{run_id}/{repo}/files/{sha256}"
    signature = uploads.sign(hub, "xet-file", repo, sha256, expires)

    def url_of(number: int) -> str:
        return f"{folder}/{number}?expires={expires}&signature={signature}"

    return JSONResponse(xet_downloads.plan(sha256, row["size"], start, stop, url_of))


@router.get("/xet/{run_id}/{repo}/files/{sha256}/{number}")
def download_xorb(request: Request, repo: int, sha256: str, number: int, expires: int, signature: str) -> Response:
    """One xorb of a file. Clients send no token to this URL, so the URL itself is signed."""
    hub: Hub = request.app.state.hub
    if not uploads.is_valid(signature, uploads.sign(hub, "xet-file", repo, sha256, expires), expires):
        raise http_error(403, "BadSignature", "This URL is invalid or has expired")
    data = xet_downloads.xorb(hub.store.blob_path(sha256), max(number, 0))
    match = re.fullmatch(r"bytes=(\d{1,18})-(\d{1,18})", request.headers.get("range", ""), re.ASCII)
    if match is None:
        return Response(data)
    part = data[int(match[1]) : int(match[2]) + 1]
    content_range = f"bytes {match[1]}-{int(match[1]) + len(part) - 1}/{len(data)}"
    return Response(part, 206, {"Content-Range": content_range})
