"""Routes of branches, tags and the commit history."""

import html
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from hubplugin.localhub.contents import git
from hubplugin.localhub.contents.git import CommitDetails
from hubplugin.localhub.dependencies import Context, JsonBody, RequestContext, page_response, string_field
from hubplugin.localhub.http_errors import http_error, revision_not_found
from hubplugin.localhub.timestamps import to_iso
from hubplugin.localhub.users import require_write_role
from hubplugin.localhub.validation import check_ref_name

router = APIRouter()


@router.get("/api/{kind:kind}/{owner}/{name}/refs")
def list_refs(context: Context, include_prs: bool = False) -> dict[str, Any]:
    """Branches and tags, and with `include_prs` the refs of pull requests."""
    prefixes = {"branches": "refs/heads/", "tags": "refs/tags/"}
    if include_prs:
        prefixes["pullRequests"] = "refs/pr/"
    response: dict[str, Any] = {"converts": []}
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        for key, prefix in prefixes.items():
            refs = git.list_refs(db, repo.id, prefix)
            response[key] = [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in refs.items()]
    return response


@router.get("/api/{kind:kind}/{owner}/{name}/commits/{rev:path}")
def list_commits(context: Context, limit: int = 1000) -> JSONResponse:
    """The history of a revision, newest first; X-Total-Count has the number of commits."""
    revision = context.path_param("rev")
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        oid = git.find_oid(db, repo.id, revision)
        if oid is None:
            raise revision_not_found(revision)
        rows = git.log(db, repo.id, oid)
    formatted = "formatted" in context.expanded()
    return page_response(context, [_commit_item(dict(row), formatted) for row in rows], limit)


def _commit_item(row: dict[str, Any], formatted: bool) -> dict[str, Any]:
    item = {
        "id": row["oid"],
        "title": row["title"],
        "message": row["message"],
        "date": to_iso(row["date"]),
        "authors": [{"user": row["author"], "avatar": ""}],
        "parents": [row["parent"]] if row["parent"] else [],
    }
    if formatted:
        item["formatted"] = {"title": html.escape(row["title"]), "message": f"<p>{html.escape(row['message'])}</p>"}
    return item


@router.post("/api/{kind:kind}/{owner}/{name}/super-squash/{rev:path}")
def super_squash(context: Context, body: JsonBody) -> dict[str, Any]:
    """Replace the history of a branch or pull request by one commit with the same files."""
    revision = context.path_param("rev")
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        ref = git.find_ref(db, repo.id, revision)
        if ref is None or ref.startswith("refs/tags/"):
            raise revision_not_found(revision)
        title = string_field(body, "message", "") or f"Super-squash branch '{revision}'"
        details = CommitDetails(title, "", require_write_role(context.user).name)
        commit = git.create_root_commit(db, repo.id, ref, git.resolve(db, repo.id, ref).tree, details)
    return {"success": True, "commitOid": commit.oid}


@router.post("/api/{kind:kind}/{owner}/{name}/branch/{rev:path}")
def create_branch(context: Context, body: JsonBody) -> dict[str, bool]:
    """Create a branch at `startingPoint`, or at the head of main, or without files (`emptyBranch`).

    `overwrite` allows that the branch exists; it then moves only where one of the others is given.
    """
    ref = f"refs/heads/{check_ref_name(context.path_param('rev'))}"
    start, empty = string_field(body, "startingPoint", ""), body.get("emptyBranch") is True
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        exists = git.find_ref(db, repo.id, ref) == ref
        if exists and body.get("overwrite") is not True:
            raise http_error(409, "Conflict", f"Reference {ref} already exists")
        if empty:
            details = CommitDetails("initial commit", "", require_write_role(context.user).name)
            git.create_root_commit(db, repo.id, ref, {}, details)
        elif start or not exists:
            git.set_ref(db, repo.id, ref, git.resolve(db, repo.id, start or "HEAD").oid)
    return {"success": True}


@router.delete("/api/{kind:kind}/{owner}/{name}/branch/{rev:path}")
def delete_branch(context: Context) -> dict[str, bool]:
    """Delete any branch but main."""
    branch = context.path_param("rev")
    if branch == "main":
        raise http_error(403, "Forbidden", "Cannot delete refs/heads/main: it is the default branch")
    return _delete_ref(context, f"refs/heads/{branch}")


@router.post("/api/{kind:kind}/{owner}/{name}/tag/{rev:path}")
def create_tag(context: Context, body: JsonBody) -> dict[str, bool]:
    """Create a tag at a revision."""
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        oid = git.resolve(db, repo.id, context.path_param("rev")).oid
        ref = f"refs/tags/{check_ref_name(string_field(body, 'tag'))}"
        if git.find_ref(db, repo.id, ref) == ref:
            raise http_error(409, "Conflict", f"Reference {ref} already exists")
        git.set_ref(db, repo.id, ref, oid)
    return {"success": True}


@router.delete("/api/{kind:kind}/{owner}/{name}/tag/{rev:path}")
def delete_tag(context: Context) -> dict[str, bool]:
    """Delete a tag."""
    return _delete_ref(context, f"refs/tags/{context.path_param('rev')}")


def _delete_ref(context: RequestContext, ref: str) -> dict[str, bool]:
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        if git.find_ref(db, repo.id, ref) != ref:
            raise revision_not_found(quote(ref))
        git.delete_ref(db, repo.id, ref)
    return {"success": True}
