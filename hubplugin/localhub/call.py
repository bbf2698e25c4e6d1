"""One request as handlers see it: the store, who asks, the repo and revision in the path, a bounded body.

It knows no route.
"""

import json
import re
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import Depends, Request

from hubplugin.localhub.access import Access, Right, User, writer
from hubplugin.localhub.refusal import refuse
from hubplugin.localhub.repos import KINDS, Repo
from hubplugin.localhub.store import Store

MAX_JSON = 16 * 2**20  # bytes
SLASH = "\x1f"  # stands in a path for an escaped slash, which is not a separator; no repo path may hold it


@dataclass(frozen=True)
class Hub:
    """What one running hub consists of."""

    store: Store
    access: Access
    xorbs: Path  # of this run
    epoch: str  # names this run; clients forget what they know of a CAS when its URL changes
    part_bytes: int  # LFS files above this come in parts


@dataclass(frozen=True)
class Call:
    """A request and its sender."""

    request: Request
    hub: Hub
    user: User | None

    @property
    def base(self) -> str:
        """The URL under which the client reached this hub."""
        return str(self.request.base_url).rstrip("/")

    def text(self, name: str) -> str:
        """A parameter of the path, escaped slashes restored."""
        return str(self.request.path_params[name]).replace(SLASH, "/")

    @property
    def kind(self) -> str:
        """models, datasets or spaces; model repos have no prefix on their web addresses."""
        return str(self.request.path_params.get("kind", "models"))

    def repo(self, db: sqlite3.Connection, right: Right) -> Repo:
        """The repo in the path, with a right to it. Raises 401, 403, 404."""
        return self.hub.access.repo(db, self.user, self.kind, f"{self.text('owner')}/{self.text('name')}", right)

    def may_commit(self, db: sqlite3.Connection, create_pr: bool) -> Repo:
        """The repo, where the caller may put a commit on the path's revision. Raises 401, 403, 404.

        Everybody may on a new pull request; on an open one its author; else one must own the repo.
        """
        repo = self.repo(db, "propose")
        number = re.fullmatch(r"refs/pr/(\d{1,9})", self.text("rev"))
        if create_pr:
            return repo
        if number:
            row = db.execute(
                "select author, status from discussion where repo = ? and num = ?", (repo.id, int(number[1]))
            ).fetchone()
            if row and row["status"] in ("merged", "closed"):
                raise refuse(403, "Forbidden", f"This pull request is {row['status']}")
            if row and row["author"] == writer(self.user).name:
                return repo
        return self.repo(db, "write")

    def web(self, repo: Repo) -> str:
        """A repo's address."""
        prefix = "" if repo.kind == "models" else f"{repo.kind}/"
        return f"{self.base}/{prefix}{repo.name}"


def call_of(request: Request) -> Call:
    """The call behind a request. Raises 401 for a wrong token."""
    hub: Hub = request.app.state.hub
    return Call(request, hub, hub.access.user(request.headers.get("authorization")))


async def pieces(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises 413 past `limit` bytes."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise refuse(413, "TooLarge", f"The body is larger than {limit} bytes")
        yield piece


async def body_of(request: Request) -> dict[str, Any]:
    """A JSON object, or a form whose values are lists. Raises 400 and 413."""
    raw = b"".join([piece async for piece in pieces(request, MAX_JSON)])
    try:
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return parse_qs(raw.decode())
        body = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise refuse(400, "BadRequest", "The body is not JSON") from error
    if not isinstance(body, dict):
        raise refuse(400, "BadRequest", "The body is not a JSON object")
    return body


Asked = Annotated[Call, Depends(call_of)]
Body = Annotated[dict[str, Any], Depends(body_of)]


def field(body: dict[str, Any], name: str, default: str | None = None) -> str:
    """A text of a JSON body. Raises 400 where it is missing or no text."""
    value = body.get(name)
    value = default if value is None else value
    if not isinstance(value, str) or len(value) > 2**20:
        raise refuse(400, "BadRequest", f"`{name}` must be a text")
    return value.encode("utf-8", "replace").decode()  # half a surrogate pair is no text that can be stored


def kind_of(body: dict[str, Any]) -> str:
    """The plural of `type` in a body. Raises 400."""
    word = field(body, "type", "model")
    for kind, singular in KINDS.items():
        if word == singular:
            return kind
    raise refuse(400, "BadRequest", f"Unknown repo type {word!r}")


def iso(milliseconds: int) -> str:
    """A moment as the API writes it."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
