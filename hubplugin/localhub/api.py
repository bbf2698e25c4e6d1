"""Repos and what is in them: whoami, create and change, info, lists, trees.

Rules live in `repos` and `access`; this file only translates between rows and the shapes that clients
parse.
"""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from hubplugin.localhub import metadata, repos
from hubplugin.localhub.access import writer
from hubplugin.localhub.call import Asked, Body, Call, field, iso, kind_of
from hubplugin.localhub.refusal import missing_entry, refuse
from hubplugin.localhub.repos import KINDS, Commit, Entry, Repo

router = APIRouter()


@router.get("/api/whoami-v2")
def whoami(call: Asked) -> dict[str, Any]:
    """The sender of a token, and the namespaces that are theirs."""
    if call.user is None:
        raise refuse(401, "Unauthorized", "You need a token for this")
    with call.hub.store.read() as db:
        spaces = call.hub.access.namespaces(db, call.user)
    return {
        "type": "user",
        "id": call.user.name,
        "name": call.user.name,
        "fullname": call.user.name,
        "isPro": False,
        "orgs": [{"type": "org", "id": name, "name": name, "fullname": name, "roleInOrg": "admin"} for name in spaces],
        "auth": {"type": "access_token", "accessToken": {"displayName": "local", "role": call.user.role}},
    }


@router.get("/api/agent-harnesses")
def agent_harnesses() -> dict[str, Any]:
    """Asked by the Python client before its first request; nothing to tell."""
    return {"standardEnvVars": [], "harnesses": {}}


# Repos


def _full_name(call: Call, body: dict[str, Any]) -> str:
    name = field(body, "name")
    owner = field(body, "organization", "") or writer(call.user).name
    return repos.check_repo_name(name if "/" in name else f"{owner}/{name}")


def _is_private(body: dict[str, Any]) -> bool:
    """Both ways in which clients say it. What is not understood must not make a repo public."""
    if body.get("visibility") not in (None, "public", "private") or not isinstance(body.get("private"), bool | None):
        raise refuse(400, "BadRequest", "`visibility` must be public or private, `private` true or false")
    return body.get("visibility") == "private" or body.get("private") is True


@router.post("/api/repos/create")
def create_repo(call: Asked, body: Body) -> JSONResponse:
    """A new repo with one empty commit."""
    user = writer(call.user)
    kind, name = kind_of(body), _full_name(call, body)
    with call.hub.store.write() as db:
        call.hub.access.claim(db, user, name.split("/")[0])
        repo = repos.find(db, kind, name)
        status = 409 if repo else 200
        repo = repo or repos.create(db, kind, name, _is_private(body), user.name)
    answer: dict[str, Any] = {"url": call.web(repo), "name": repo.name, "id": repo.name}
    if status == 409:  # clients that may find it there read the address out of the refusal
        raise refuse(409, "Conflict", f"You already created this {KINDS[kind]} repo: {repo.name}", **answer)
    return JSONResponse(answer)


@router.delete("/api/repos/delete")
def delete_repo(call: Asked, body: Body) -> dict[str, bool]:
    """Forget a repo and its history. The blobs stay."""
    with call.hub.store.write() as db:
        repo = call.hub.access.repo(db, call.user, kind_of(body), _full_name(call, body), "write")
        db.execute("delete from repo where id = ?", (repo.id,))
    return {"success": True}


@router.post("/api/repos/move")
def move_repo(call: Asked, body: Body) -> dict[str, Any]:
    """Give a repo another name."""
    kind, target = kind_of(body), repos.check_repo_name(field(body, "toRepo"))
    with call.hub.store.write() as db:
        repo = call.hub.access.repo(db, call.user, kind, field(body, "fromRepo"), "write")
        call.hub.access.claim(db, call.user, target.split("/")[0])
        other = repos.find(db, kind, target)
        if other and other.id != repo.id:
            raise refuse(409, "Conflict", f"{target} already exists")
        db.execute("update repo set name = ? where id = ?", (target, repo.id))
    return {"success": True}


@router.put("/api/{kind}/{owner}/{name}/settings")
def change_settings(call: Asked, body: Body) -> dict[str, Any]:
    """Private or public, gated or not."""
    with call.hub.store.write() as db:
        repo = call.repo(db, "write")
        private, gated = repo.private, repo.gated
        if body.get("visibility") is not None or body.get("private") is not None:
            private = _is_private(body)
        if body.get("gated") is not None:
            if body["gated"] not in ("auto", "manual", False):
                raise refuse(400, "BadRequest", "`gated` must be auto, manual or false")
            gated = body["gated"] or None
        db.execute("update repo set private = ?, gated = ? where id = ?", (private, gated, repo.id))
    return {"private": private, "gated": gated or False}


def _info(call: Call, repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    card: dict[str, Any] = {}
    readme = commit.tree.get("README.md")
    if readme is not None and readme.size <= 2**20:
        text = call.hub.store.blob(readme.sha256).read_text(encoding="utf-8", errors="replace")
        card, _ = metadata.front_matter(text)
    return {
        "_id": str(repo.id),
        "id": repo.name,
        "modelId": repo.name,
        "author": repo.owner,
        "sha": commit.oid,
        "createdAt": iso(repo.created),
        "lastModified": iso(commit.date),
        "private": repo.private,
        "gated": repo.gated or False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": metadata.tags(card),
        "cardData": card,
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "model-index": card.get("model-index"),
        "usedStorage": sum({entry.sha256: entry.size for entry in commit.tree.values()}.values()),
        "siblings": [_sibling(path, entry, blobs) for path, entry in commit.tree.items()],
    }


def _sibling(path: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    lfs = {"lfs": {"sha256": entry.sha256, "size": entry.size, "pointerSize": _pointer_size(entry)}}
    return {"rfilename": path, "size": entry.size, "blobId": entry.oid, **(lfs if entry.lfs else {})}


def _pointer_size(entry: Entry) -> int:
    return len(repos.pointer(entry.sha256, entry.size))


@router.get("/api/{kind}/{owner}/{name}")
@router.get("/api/{kind}/{owner}/{name}/revision/{rev}")
def repo_info(call: Asked, blobs: bool = False) -> dict[str, Any]:
    """One repo at one revision. `expand` is not looked at: everything there is, is in the answer."""
    rev = call.text("rev") if "rev" in call.request.path_params else "HEAD"
    with call.hub.store.read() as db:
        repo = call.repo(db, "see")
        commit = repos.resolve(db, repo, rev)
    return _info(call, repo, commit, blobs)


@router.get("/api/models")
@router.get("/api/datasets")
@router.get("/api/spaces")
def list_repos(call: Asked, author: str = "", search: str = "", limit: int = 1000) -> list[dict[str, Any]]:
    """The repos that the caller may see, newest first. `filter=` means tags, all of which must be there."""
    wanted = call.request.query_params.getlist("filter")
    found = []
    with call.hub.store.read() as db:
        for repo in repos.select(db, "kind = ?", call.request.url.path.rsplit("/", 1)[-1]):
            if (author and repo.owner.lower() != author.lower()) or search.lower() not in repo.name.lower():
                continue
            if not call.hub.access.may_see(db, call.user, repo):
                continue
            info = _info(call, repo, repos.resolve(db, repo, "HEAD"))
            if set(wanted) <= set(info["tags"]):
                found.append(info)
    return found[: max(limit, 0)]


# Trees


def _item(path: str, entry: Entry) -> dict[str, Any]:
    lfs = {"lfs": {"oid": entry.sha256, "size": entry.size, "pointerSize": _pointer_size(entry)}}
    return {"type": "file", "oid": entry.oid, "size": entry.size, "path": path, **(lfs if entry.lfs else {})}


def _folders(commit: Commit) -> dict[str, dict[str, Any]]:
    """Items of all folders; a folder's oid follows from what is in it."""
    inside: dict[str, list[str]] = {}
    for path, entry in commit.tree.items():
        for count in range(1, path.count("/") + 1):
            inside.setdefault(path.rsplit("/", count)[0], []).append(f"{path}:{entry.oid}")
    return {
        path: {"type": "directory", "oid": repos.git_oid("\n".join(files).encode()), "size": 0, "path": path}
        for path, files in inside.items()
    }


def _with_changes(call: Call, db: Any, repo: Repo, commit: Commit, items: list[dict[str, Any]]) -> None:
    changes = repos.last_changes(db, repo, commit, {item["path"] for item in items})
    for item in items:
        last = changes[item["path"]]
        item["lastCommit"] = {"id": last.oid, "title": last.title, "date": iso(last.date)}


@router.get("/api/{kind}/{owner}/{name}/tree/{rev}")
@router.get("/api/{kind}/{owner}/{name}/tree/{rev}/{path:path}")
def list_tree(call: Asked, recursive: bool = False, expand: bool = False) -> list[dict[str, Any]]:
    """Files and folders below a path."""
    path = call.text("path").strip("/") if "path" in call.request.path_params else ""
    with call.hub.store.read() as db:
        repo = call.repo(db, "see")
        commit = repos.resolve(db, repo, call.text("rev"))
        folders = _folders(commit)
        if path and path not in folders:
            raise missing_entry(path, commit.oid)
        below = f"{path}/" if path else ""
        items = [*folders.values(), *(_item(name, entry) for name, entry in commit.tree.items())]
        items = [
            item
            for item in sorted(items, key=lambda item: item["path"])
            if item["path"].startswith(below) and (recursive or "/" not in item["path"][len(below) :])
        ]
        if expand:
            _with_changes(call, db, repo, commit, items)
    return items


@router.post("/api/{kind}/{owner}/{name}/paths-info/{rev}")
def paths_info(call: Asked, body: Body) -> list[dict[str, Any]]:
    """Those of the given paths that exist."""
    wanted = body.get("paths", [])
    if not isinstance(wanted, list):
        wanted = [wanted]
    with call.hub.store.read() as db:
        repo = call.repo(db, "see")
        commit = repos.resolve(db, repo, call.text("rev"))
        known = _folders(commit) | {path: _item(path, entry) for path, entry in commit.tree.items()}
        items = [known[path] for path in dict.fromkeys(str(p).strip("/") for p in wanted) if path in known]
        if str(body.get("expand", [""])).lower() in ("true", "['true']"):
            _with_changes(call, db, repo, commit, items)
    return items


@router.get("/api/{kind}/{name}")
@router.api_route("/{name}/resolve/{path:path}", methods=["GET", "HEAD"])
def ownerless(call: Asked) -> None:
    """A repo id without an owner: there are none here."""
    raise refuse(404 if call.user else 401, "RepoNotFound", "Repository not found")
