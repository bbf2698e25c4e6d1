"""What route handlers depend on: the hub, the sender of a request, the repo in the URL, a JSON body of limited size.

These are FastAPI dependencies. This module knows no route.
"""

import json
import re
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from starlette.convertors import StringConvertor, register_url_convertor

from hubplugin.localhub.access import Access, Permission
from hubplugin.localhub.contents import discussions, git
from hubplugin.localhub.contents.repos import KIND_OF_TYPE, Repo
from hubplugin.localhub.http_errors import http_error
from hubplugin.localhub.middleware import ESCAPED_SLASH
from hubplugin.localhub.store import Store
from hubplugin.localhub.users import User, Users, require_write_role


class KindConvertor(StringConvertor):
    """`{kind:kind}` in a route matches kinds of repos only. Register it before the routes are made."""

    regex = "|".join(KIND_OF_TYPE.values())


register_url_convertor("kind", KindConvertor())
MAX_JSON_BYTES = 16 * 2**20
MAX_STRING_LENGTH = 2**20


@dataclass(frozen=True)
class Hub:
    """The parts of one running hub; kept in `app.state.hub`."""

    store: Store
    users: Users
    access: Access
    xorbs: Path  # folder of the xorbs that were uploaded in this run
    run_id: str  # part of the Xet CAS URL; see `app`
    part_bytes: int  # LFS files that are larger are uploaded in parts of this size


@dataclass(frozen=True)
class RequestContext:
    """A request and its sender."""

    request: Request
    hub: Hub
    user: User | None  # None: no token

    @property
    def base_url(self) -> str:
        """The URL of this hub as the client knows it."""
        return str(self.request.base_url).rstrip("/")

    def path_param(self, name: str) -> str:
        """A parameter of the URL path, with its escaped slashes."""
        return str(self.request.path_params[name]).replace(ESCAPED_SLASH, "/")

    @property
    def kind(self) -> str:
        """The kind of the repo in the URL path. Outside of /api, URLs of model repos do not name it."""
        return str(self.request.path_params.get("kind", "models"))

    def expanded(self) -> set[str]:
        """The properties that a query names with `expand`, which some clients write `expand[]`."""
        query = self.request.query_params
        return {name for value in query.getlist("expand") + query.getlist("expand[]") for name in value.split(",")}

    def revision_and_path(self, db: sqlite3.Connection, repo: Repo) -> tuple[str, str]:
        """The revision and the path in `{rest}` of the URL path. Not all clients escape the slashes of a revision."""
        return git.split_revision(db, repo.id, str(self.request.path_params["rest"]), ESCAPED_SLASH)

    def repo(self, db: sqlite3.Connection, permission: Permission) -> Repo:
        """The repo in the URL path, where the sender has the permission. Raises 401, 403, 404."""
        repo_id = f"{self.path_param('owner')}/{self.path_param('name')}"
        return self.hub.access.authorize(db, self.user, self.kind, repo_id, permission)

    def repo_for_commit(self, db: sqlite3.Connection, create_pr: bool) -> Repo:
        """The repo in the URL path, where the sender may commit to the path's revision. Raises 401, 403, 404.

        Every user who sees the repo may commit to a new pull request, its author to an open one, and the owner of
        the repo to every branch and pull request.
        """
        repo = self.repo(db, "contribute")
        if create_pr:
            return repo
        pr_ref = re.fullmatch(r"refs/pr/(\d{1,9})", self.path_param("rev"))
        if pr_ref:
            row = discussions.find_discussion(db, repo, int(pr_ref[1]))
            if row and row["status"] in ("merged", "closed"):
                raise http_error(403, "Forbidden", f"This pull request is {row['status']}")
            if row and row["author"] == require_write_role(self.user).name:
                return repo
        return self.repo(db, "write")

    def repo_url(self, repo: Repo) -> str:
        """The URL of a repo's page."""
        prefix = "" if repo.kind == "models" else f"{repo.kind}/"
        return f"{self.base_url}/{prefix}{repo.name}"


def request_context(request: Request) -> RequestContext:
    """The context of a request. Raises 401 for an invalid token."""
    hub: Hub = request.app.state.hub
    return RequestContext(request, hub, hub.users.authenticate(request.headers.get("authorization")))


async def limited_stream(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body in chunks as they arrive. Raises 413 where it is too large."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise http_error(413, "TooLarge", f"The body is larger than {max_bytes} bytes")
        yield chunk


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises 413 where it is too large."""
    return b"".join([chunk async for chunk in limited_stream(request, max_bytes)])


async def json_body(request: Request) -> dict[str, Any]:
    """A JSON object, or a form, whose values are lists. Raises 400 and 413.

    Not a pydantic model of FastAPI, which would read a body of any size.
    """
    raw = await read_body(request, MAX_JSON_BYTES)
    try:
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return parse_qs(raw.decode())
        body = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise http_error(400, "BadRequest", "The body is not JSON") from error
    if not isinstance(body, dict):
        raise http_error(400, "BadRequest", "The body is not a JSON object")
    return body


Context = Annotated[RequestContext, Depends(request_context)]
JsonBody = Annotated[dict[str, Any], Depends(json_body)]


def string_field(body: dict[str, Any], name: str, default: str | None = None) -> str:
    """A string in a JSON body. Raises 400 where it has another type, or is missing and has no default."""
    value = body.get(name)
    value = default if value is None else value
    if not isinstance(value, str) or len(value) > MAX_STRING_LENGTH:
        raise http_error(400, "BadRequest", f"`{name}` must be a string")
    return value.encode("utf-8", "replace").decode()  # JSON can hold a lone surrogate, SQLite cannot


def page_response(context: RequestContext, items: list[Any], limit: int, max_limit: int = 1000) -> JSONResponse:
    """One page of items. Where more follow, the header Link has the URL of the next page."""
    query = dict(parse_qs(context.request.url.query, keep_blank_values=True))
    cursor = query.get("cursor", ["0"])[0]
    start = int(cursor) if re.fullmatch(r"\d{1,9}", cursor, re.ASCII) else 0
    stop = start + min(max(limit, 0), max_limit)
    headers = {"X-Total-Count": str(len(items))}
    if start < stop < len(items):
        query["cursor"] = [str(stop)]
        path = context.request.scope["raw_path"].decode("latin-1").partition("?")[0]
        url = f"{context.base_url}{path}?{urlencode(query, doseq=True)}"
        headers["Link"] = f'<{url}>; rel="next"'
    return JSONResponse(items[start:stop], headers=headers)


def kind_field(body: dict[str, Any]) -> str:
    """The kind of the repo type in a JSON body. Raises 400."""
    repo_type = string_field(body, "type", "model")
    if repo_type not in KIND_OF_TYPE:
        raise http_error(400, "BadRequest", f"Unknown repo type {repo_type!r}")
    return KIND_OF_TYPE[repo_type]
