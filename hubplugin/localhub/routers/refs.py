"""Routes of branches, tags and the commit history."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter

from hubplugin.localhub import git
from hubplugin.localhub.dependencies import Context, JsonBody, RequestContext, string_field
from hubplugin.localhub.http_errors import http_error, revision_not_found
from hubplugin.localhub.timestamps import to_iso
from hubplugin.localhub.validation import check_ref_name

router = APIRouter()


@router.get("/api/{kind}/{owner}/{name}/refs")
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


@router.get("/api/{kind}/{owner}/{name}/commits/{rev}")
def list_commits(context: Context) -> list[dict[str, Any]]:
    """The history of a revision, newest first."""
    with context.hub.store.read() as db:
        repo = context.repo(db, "view")
        head = git.resolve(db, repo.id, context.path_param("rev"))
        return [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": to_iso(commit.date),
                "authors": [{"user": commit.author}],
                "parents": [commit.parent] if commit.parent else [],
            }
            for commit in git.history(db, repo.id, head)
        ]


@router.post("/api/{kind}/{owner}/{name}/branch/{rev}")
def create_branch(context: Context, body: JsonBody) -> dict[str, bool]:
    """Create a branch at `startingPoint`, or at the head of main."""
    branch = check_ref_name(context.path_param("rev"))
    return _create_ref(context, f"refs/heads/{branch}", string_field(body, "startingPoint", "HEAD"))


@router.delete("/api/{kind}/{owner}/{name}/branch/{rev}")
def delete_branch(context: Context) -> dict[str, bool]:
    """Delete any branch but main."""
    branch = context.path_param("rev")
    if branch == "main":
        raise http_error(403, "Forbidden", "The branch main cannot be deleted")
    return _delete_ref(context, f"refs/heads/{branch}")


@router.post("/api/{kind}/{owner}/{name}/tag/{rev}")
def create_tag(context: Context, body: JsonBody) -> dict[str, bool]:
    """Create a tag at a revision."""
    tag = check_ref_name(string_field(body, "tag"))
    return _create_ref(context, f"refs/tags/{tag}", context.path_param("rev"))


@router.delete("/api/{kind}/{owner}/{name}/tag/{rev}")
def delete_tag(context: Context) -> dict[str, bool]:
    """Delete a tag."""
    return _delete_ref(context, f"refs/tags/{context.path_param('rev')}")


def _create_ref(context: RequestContext, ref: str, revision: str) -> dict[str, bool]:
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        if git.find_ref(db, repo.id, ref) == ref:
            raise http_error(409, "Conflict", f"Reference {ref} already exists")
        git.set_ref(db, repo.id, ref, git.resolve(db, repo.id, revision).oid)
    return {"success": True}


def _delete_ref(context: RequestContext, ref: str) -> dict[str, bool]:
    with context.hub.store.write() as db:
        repo = context.repo(db, "write")
        if git.find_ref(db, repo.id, ref) != ref:
            raise revision_not_found(quote(ref))
        git.delete_ref(db, repo.id, ref)
    return {"success": True}
