"""Routes of LFS uploads: the batch endpoint, and signed URLs that take an object whole or in parts.

Clients send no access token to an upload URL, so the URL itself is signed.
"""

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from hubplugin.localhub.contents import repos
from hubplugin.localhub.contents.repos import Repo
from hubplugin.localhub.dependencies import Context, Hub, JsonBody, RequestContext
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.routers.files.xet import token_headers
from hubplugin.localhub.transfers import uploads
from hubplugin.localhub.transfers.uploads import MAX_FILE_BYTES, SIGNATURE_SECONDS

router = APIRouter()


class UploadClaims(BaseModel):
    """What an upload URL allows; its query."""

    model_config = ConfigDict(frozen=True)

    repo: int  # row id
    size: int  # bytes of the object or part
    part: int  # 1, 2, ...; 0: the whole object
    expires: int  # Unix time


class SignedClaims(UploadClaims):
    """The query of an upload URL with its signature."""

    signature: str


@dataclass(frozen=True)
class Upload:
    """An upload that a valid URL allows."""

    hub: Hub
    sha256: str  # of the whole object
    claims: UploadClaims

    def part_path(self, number: int) -> Path:
        """The temporary file of one part."""
        return self.hub.store.incoming / f"{self.claims.repo}-{self.sha256}-{number}"

    def add_object(self, path: Path) -> None:
        """Make a temporary file, whose hash has been checked, the object of the repo."""
        uploads.add_object(self.hub, self.claims.repo, path, self.sha256, self.claims.size)


def _sign(hub: Hub, action: str, sha256: str, claims: UploadClaims) -> str:
    return uploads.sign(hub, action, sha256, claims.repo, claims.size, claims.part, claims.expires)


def _upload_url(context: RequestContext, action: str, sha256: str, claims: UploadClaims) -> str:
    query = claims.model_dump() | {"signature": _sign(context.hub, action, sha256, claims)}
    return f"{context.base_url}/lfs/{action}/{sha256}?{urlencode(query)}"


def _check_upload_url(request: Request, sha256: str, claims: Annotated[SignedClaims, Query()]) -> Upload:
    """The upload that the URL allows. Raises 403 where the signature is wrong or has expired."""
    hub: Hub = request.app.state.hub
    action = request.url.path.split("/")[2]
    if not uploads.is_valid(claims.signature, _sign(hub, action, sha256, claims), claims.expires):
        raise http_error(403, "BadSignature", "This upload URL is invalid or has expired")
    return Upload(hub, sha256, claims)


SignedUpload = Annotated[Upload, Depends(_check_upload_url)]


@router.post("/{owner}/{name}.git/info/lfs/objects/batch")
@router.post("/{kind:kind}/{owner}/{name}.git/info/lfs/objects/batch")
def lfs_batch(context: Context, body: JsonBody) -> JSONResponse:
    """The upload URL of each object; none for an object that the repo has already. Clients that offer it get Xet."""
    objects = body.get("objects")
    if body.get("operation") != "upload" or not isinstance(objects, list):
        raise http_error(400, "BadRequest", "Only the upload of objects is supported")
    transfers = body.get("transfers")
    xet = isinstance(transfers, list) and "xet" in transfers
    response = []
    with context.hub.store.read() as db:
        repo = context.repo(db, "contribute")
        for lfs_object in objects:
            sha256, size = _parse_object(lfs_object)
            known = repos.has_object(db, repo, sha256)
            upload = _xet_action(context, repo, body) if xet else _upload_action(context, repo.id, sha256, size)
            actions = {} if known else {"actions": {"upload": upload}}
            response.append({"oid": sha256, "size": size, **actions})
    transfer = {"transfer": "xet"} if xet else {}
    return JSONResponse(transfer | {"objects": response}, media_type="application/vnd.git-lfs+json")


def _xet_action(context: RequestContext, repo: Repo, body: dict[str, Any]) -> dict[str, Any]:
    """The token for an upload by Xet, and the URL of the next one. A new pull request has no ref yet."""
    ref = body.get("ref")
    revision = str(ref.get("name") or "main") if isinstance(ref, dict) else "None"
    href = f"{context.base_url}/api/{repo.kind}/{repo.name}/xet-write-token/{quote(revision, safe='')}"
    return {"href": href, "header": token_headers(context, repo)}


def _parse_object(lfs_object: Any) -> tuple[str, int]:
    """The sha256 and the size of an object in a batch request. Raises 413 and 422."""
    sha256, size = (lfs_object.get("oid"), lfs_object.get("size")) if isinstance(lfs_object, dict) else (None, None)
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise http_error(422, "BadRequest", "`oid` must be a sha256")
    if not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
        raise http_error(413, "TooLarge", f"`size` must be at most {MAX_FILE_BYTES} bytes")
    return sha256, size


def _part_count(hub: Hub, size: int) -> int:
    return -(-size // hub.part_bytes)  # rounded up


def _upload_action(context: RequestContext, repo_id: int, sha256: str, size: int) -> dict[str, Any]:
    """One URL for the whole object, or one per part and one that joins the parts."""
    part_bytes = context.hub.part_bytes
    claims = UploadClaims(repo=repo_id, size=size, part=0, expires=int(time.time()) + SIGNATURE_SECONDS)
    if size <= part_bytes:
        return {"href": _upload_url(context, "put", sha256, claims)}
    header = {"chunk_size": str(part_bytes)}
    for number in range(1, _part_count(context.hub, size) + 1):
        part_size = min(part_bytes, size - part_bytes * (number - 1))
        part_claims = claims.model_copy(update={"part": number, "size": part_size})
        header[str(number)] = _upload_url(context, "put", sha256, part_claims)
    return {"href": _upload_url(context, "join", sha256, claims), "header": header}


@router.put("/lfs/put/{sha256}")
async def put_object(request: Request, upload: SignedUpload) -> Response:
    """Receive an object, or one part of it."""
    claims = upload.claims
    path = upload.hub.store.temporary_path()
    try:
        sha256, size = await uploads.save_body(request, path, claims.size)
        if size != claims.size or (claims.part == 0 and sha256 != upload.sha256):
            raise http_error(400, "BadObject", "The content does not have the announced size and sha256")
        if claims.part:
            path.replace(upload.part_path(claims.part))
        else:
            await run_in_threadpool(upload.add_object, path)
    finally:
        path.unlink(missing_ok=True)
    return Response(headers={"ETag": f'"{sha256}"'})


@router.post("/lfs/join/{sha256}")
def join_parts(upload: SignedUpload) -> dict[str, bool]:
    """Make one object of its parts. The list of parts in the body is not needed."""
    count = _part_count(upload.hub, upload.claims.size)
    part_paths = [upload.part_path(number) for number in range(1, count + 1)]
    joined_path = upload.hub.store.temporary_path()
    digest = hashlib.sha256()
    try:
        with joined_path.open("wb") as joined:
            for part_path in part_paths:
                with part_path.open("rb") as part:
                    while data := part.read(2**20):
                        digest.update(data)
                        joined.write(data)
        if digest.hexdigest() != upload.sha256:
            raise http_error(400, "BadObject", "The joined parts do not have the announced sha256")
        upload.add_object(joined_path)
    except FileNotFoundError as error:
        raise http_error(400, "BadObject", "A part is missing") from error
    finally:
        for path in (joined_path, *part_paths):
            path.unlink(missing_ok=True)
    return {"success": True}
