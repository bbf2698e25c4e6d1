"""Large files on their way in: LFS in one piece or in parts, and the write side of Xet.

Upload addresses are signed, since clients send no token to them. An object belongs to the repos it was
uploaded to.
"""

import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from hubplugin.localhub import repos, xet
from hubplugin.localhub.call import Asked, Body, Call, Hub, pieces
from hubplugin.localhub.refusal import refuse
from hubplugin.localhub.repos import Repo

router = APIRouter()

MAX_FILE = 200 * 2**30  # bytes
MAX_SHARD = 64 * 2**20
SIGNED_FOR = 3600  # seconds


@dataclass(frozen=True)
class Ticket:
    """What a signed address is good for: one object, or one part of it, into one repo."""

    hub: Hub
    sha256: str
    repo: int
    size: int  # bytes
    part: int  # 0: the whole

    def part_path(self, number: int) -> Path:
        """Where a part waits for the others."""
        return self.hub.store.incoming / f"{self.repo}-{self.sha256}-{number}"


def _sign(hub: Hub, *claims: object) -> str:
    return hmac.new(hub.store.secret, "\n".join(map(str, claims)).encode(), hashlib.sha256).hexdigest()


def _is_signed(good: str, signature: str, expires: int) -> bool:
    return hmac.compare_digest(good, signature.encode("ascii", "replace").decode()) and expires >= time.time()


def _href(call: Call, verb: str, repo: Repo, sha256: str, size: int, part: int = 0) -> str:
    expires = int(time.time()) + SIGNED_FOR
    signature = _sign(call.hub, verb, sha256, repo.id, size, part, expires)
    claims = {"repo": repo.id, "size": size, "part": part, "expires": expires, "signature": signature}
    return f"{call.base}/lfs/{verb}/{sha256}?{urlencode(claims)}"


def _ticket(request: Request, sha256: str, repo: int, size: int, part: int, expires: int, signature: str) -> Ticket:
    """Raises 403 for an address that this hub did not make, or made too long ago."""
    hub: Hub = request.app.state.hub
    verb = request.url.path.split("/")[2]
    if not _is_signed(_sign(hub, verb, sha256, repo, size, part, expires), signature, expires):
        raise refuse(403, "BadSignature", "This upload address is not valid, or no longer")
    return Ticket(hub, sha256, repo, size, part)


Signed = Annotated[Ticket, Depends(_ticket)]


@router.post("/{owner}/{name}.git/info/lfs/objects/batch")
@router.post("/{kind}/{owner}/{name}.git/info/lfs/objects/batch")
def lfs_batch(call: Asked, body: Body) -> JSONResponse:
    """Where to send each object; nothing for those the repo has."""
    objects = body.get("objects")
    if body.get("operation") != "upload" or not isinstance(objects, list):
        raise refuse(400, "BadRequest", "Only the upload of objects is supported")
    answers = []
    with call.hub.store.read() as db:
        repo = call.repo(db, "propose")
        for one in objects:
            sha256, size = (one.get("oid"), one.get("size")) if isinstance(one, dict) else (None, None)
            if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
                raise refuse(422, "BadRequest", "`oid` must be a sha256")
            if not isinstance(size, int) or not 0 <= size <= MAX_FILE:
                raise refuse(413, "TooLarge", f"`size` must be at most {MAX_FILE} bytes")
            known = db.execute("select 1 from object where repo = ? and sha256 = ?", (repo.id, sha256)).fetchone()
            actions = {} if known else {"actions": {"upload": _upload(call, repo, sha256, size)}}
            answers.append({"oid": sha256, "size": size, **actions})
    return JSONResponse({"objects": answers}, media_type="application/vnd.git-lfs+json")


def _upload(call: Call, repo: Repo, sha256: str, size: int) -> dict[str, Any]:
    step = call.hub.part_bytes
    if size <= step:
        return {"href": _href(call, "put", repo, sha256, size)}
    header = {"chunk_size": str(step)}
    for part in range(1, -(-size // step) + 1):
        header[str(part)] = _href(call, "put", repo, sha256, min(step, size - step * (part - 1)), part)
    return {"href": _href(call, "join", repo, sha256, size), "header": header}


async def _receive(request: Request, path: Path, limit: int) -> tuple[str, int]:
    """Write a body to a file as it arrives; its sha256 and its size."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        async for piece in pieces(request, limit):
            file.write(piece)
            digest.update(piece)
        return digest.hexdigest(), file.tell()


@router.put("/lfs/put/{sha256}")
async def lfs_put(request: Request, ticket: Signed) -> Response:
    """An object, or one part of it."""
    path = ticket.hub.store.part()
    try:
        sha256, size = await _receive(request, path, ticket.size)
        if size != ticket.size or (ticket.part == 0 and sha256 != ticket.sha256):
            raise refuse(400, "BadObject", "The bytes are not those that were announced")
        if ticket.part:
            path.replace(ticket.part_path(ticket.part))
        else:
            await run_in_threadpool(_keep, ticket, path)
    finally:
        path.unlink(missing_ok=True)
    return Response(headers={"ETag": f'"{sha256}"'})


def _keep(ticket: Ticket, path: Path) -> None:
    ticket.hub.store.adopt(path, ticket.sha256)
    with ticket.hub.store.write() as db:
        repos.add_object(db, ticket.repo, ticket.sha256, ticket.size)


@router.post("/lfs/join/{sha256}")
def lfs_join(ticket: Signed) -> dict[str, bool]:
    """Make one object of its parts. What the client says of them is not needed."""
    count = -(-ticket.size // ticket.hub.part_bytes)
    parts = [ticket.part_path(number) for number in range(1, count + 1)]
    whole = ticket.hub.store.part()
    digest = hashlib.sha256()
    try:
        with whole.open("wb") as out:
            for path in parts:
                with path.open("rb") as file:
                    while piece := file.read(2**20):
                        digest.update(piece)
                        out.write(piece)
        if digest.hexdigest() != ticket.sha256:
            raise refuse(400, "BadObject", "The parts do not make what was announced")
        _keep(ticket, whole)
    except FileNotFoundError as error:
        raise refuse(400, "BadObject", "A part is missing") from error
    finally:
        for path in (whole, *parts):
            path.unlink(missing_ok=True)
    return {"success": True}


@router.get("/api/{kind}/{owner}/{name}/xet-write-token/{rev}")
def xet_token(call: Asked, create_pr: bool = False) -> JSONResponse:
    """Where the chunks of large files go, and a token for it that is good for this repo."""
    with call.hub.store.read() as db:
        # A client that is about to open a pull request does not know its revision yet, and says None.
        repo = call.may_commit(db, create_pr or call.text("rev") == "None")
    expires = int(time.time()) + SIGNED_FOR
    token = f"{repo.id}.{expires}.{_sign(call.hub, 'xet', call.hub.epoch, repo.id, expires)}"
    url = f"{call.base}/xet/{call.hub.epoch}/{repo.id}"
    headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return JSONResponse({"casUrl": url, "accessToken": token, "exp": expires}, headers=headers)


def _xorbs(request: Request, epoch: str, repo: int) -> Path:
    """The folder of one repo's xorbs; shared by no other repo, since a client could send false ones.

    Raises 401 and 404.
    """
    hub: Hub = request.app.state.hub
    if epoch != hub.epoch:
        raise refuse(404, "NotFound", "This hub was started again since")
    match = re.fullmatch(r"Bearer (\d{1,18})\.(\d{1,18})\.(\w+)", request.headers.get("authorization", ""), re.ASCII)
    claimed, expires, signature = match.groups() if match else ("", "0", "")
    good = _sign(hub, "xet", epoch, claimed, expires)
    if claimed != str(repo) or not _is_signed(good, signature, int(expires)):
        raise refuse(401, "Unauthorized", "This upload token is not valid, or no longer")
    folder = hub.xorbs / claimed
    folder.mkdir(exist_ok=True)
    return folder


@router.post("/xet/{epoch}/{repo}/v1/xorbs/default/{xorb}")
async def xet_xorb(request: Request, epoch: str, repo: int, xorb: str) -> dict[str, bool]:
    """One container of chunks. It is looked into when a shard refers to it."""
    folder = _xorbs(request, epoch, repo)
    if not re.fullmatch(r"[0-9a-f]{64}", xorb):
        raise refuse(400, "BadXet", "not the hash of a xorb")
    part = request.app.state.hub.store.part()
    try:
        await _receive(request, part, xet.MAX_XORB)
        part.replace(folder / xorb)
    finally:
        part.unlink(missing_ok=True)
    return {"was_inserted": True}


@router.post("/xet/{epoch}/{repo}/v1/shards")
async def xet_shard(request: Request, epoch: str, repo: int) -> dict[str, int]:
    """How files are made of chunks. They are made, checked and kept before the answer."""
    folder = _xorbs(request, epoch, repo)
    raw = b"".join([piece async for piece in pieces(request, MAX_SHARD)])
    await run_in_threadpool(_keep_shard, request.app.state.hub, folder, raw, repo)
    return {"result": 1}


def _keep_shard(hub: Hub, folder: Path, raw: bytes, repo: int) -> None:
    for file in xet.files(raw):
        if file.size > MAX_FILE:
            raise refuse(413, "TooLarge", f"A file may have {MAX_FILE} bytes")
        part = hub.store.part()
        try:
            xet.assemble(file, folder, part)
            _keep(Ticket(hub, file.sha256, repo, file.size, 0), part)
        finally:
            part.unlink(missing_ok=True)
