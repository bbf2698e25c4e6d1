"""Pushes a folder as one commit and groups repos in a collection.

Knows repos, commits and names of files. Knows no licence, no manifest and no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
)

from hubplugin import report
from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.model_folder import PUSHED, allowed
from hubplugin.errors import HubError
from hubplugin.hub.client import clear_errors, connect, endpoint
from hubplugin.hub.upstream import COMMIT_MESSAGE, edits, shown
from hubplugin.progress import progress


@dataclass(frozen=True)
class Pushed:
    """Where a folder was published."""

    url: str
    commit: str
    changed: bool  # False: the repo already held exactly these files, no commit was made


def push(
    folder: Path, repo: str, *, private: bool, gated: bool = False, force: bool = False, files: tuple[str, ...] = PUSHED
) -> Pushed:
    """Publish a folder as exactly one commit on main, or as none where nothing changed.

    Files of the allow-list that an earlier commit of ours left upstream (shards of an earlier version) are deleted by
    the same commit. What others have written since our last commit stays; where it cannot, because our file changed
    too or is one that was measured, this is refused, unless `force` takes our side. `gated` closes the repo to readers
    who did not ask, before a byte is uploaded. Raises HubError, and then no file was published.
    """
    names = model_folder.publishable(folder, files)
    api = connect()
    with clear_errors(repo):
        new = not api.repo_exists(repo)
        if new:
            api.create_repo(repo, private=private, exist_ok=True)
        info = look(api, repo, private=private)
        upstream = [sibling.rfilename for sibling in info.siblings or ()]
        if info.private and not private:
            progress(f"push   {repo} is private already and stays so")
        theirs = set() if new else _others(api, repo, str(info.sha), folder, names, force)
        if gated and not info.gated:
            api.update_repo_settings(repo, gated="auto")
        stale = [name for name in upstream if name not in names and allowed(name, files)]
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, str(folder / name)) for name in names if name not in theirs),
                *(CommitOperationDelete(name, is_folder=False) for name in stale if name not in theirs),
            ],
            commit_message=COMMIT_MESSAGE,
            parent_commit=info.sha,
        )
    return Pushed(f"{endpoint()}/{repo}", commit.oid, commit.oid != info.sha)


def check(repo: str, *, private: bool) -> None:
    """Raise HubError where this token may not publish to a repo, or should not. Uploads and creates nothing."""
    api = connect()
    with clear_errors(repo):
        if api.repo_exists(repo):
            look(api, repo, private=private)
            return
        me, owner = api.whoami(), repo.split("/")[0]
        if owner not in {me["name"], *(group["name"] for group in me.get("orgs", ()))}:
            raise HubError(
                repo,
                f"there is no such repo, and {me['name']}, whose token this is, does not belong to {owner}",
                "use another `publish.repo`, or a token of that owner",
            )


def look(api: HfApi, repo: str, *, private: bool) -> ModelInfo:
    """A repo that is there, once it is known that we may and should publish to it. Raises HubError where not."""
    info = api.model_info(repo)
    upstream = [sibling.rfilename for sibling in info.siblings or ()]
    _check_target(repo, upstream, private=private, is_private=bool(info.private))
    api.auth_check(repo, write=True)
    return info


def _others(api: HfApi, repo: str, head: str, folder: Path, names: Iterable[str], force: bool) -> set[str]:
    """Paths that stay as others made them. Raises HubError where some cannot, and nobody said `force`."""
    found = edits(api, repo, head, folder, names)
    for line in shown(api, repo, found, folder):
        progress(f"push   {repo} {line}" if " by others: " in line else line)
    if found.kept:
        progress(f"push   {repo} these stay as they are: {', '.join(found.kept)}")
    if found.lost and not force:
        since = f"since our commit {found.since[:12]}" if found.since else "and its history has no commit of ours"
        raise HubError(
            repo,
            f"others have changed {', '.join(found.lost)} {since}; nothing was published",
            "look at what differs above, then `hubplugin publish --force`, or undo it there, or use another repo",
        )
    return set(found.kept)


def collect(title: str, namespace: str, items: Mapping[str, str], private: bool) -> str:
    """Group repos (`items`: repo id -> note) in a collection; items already in it stay. Returns its URL."""
    api = connect()
    with clear_errors(f"collection {title!r} of {namespace}"):
        group = api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
        for repo, note in items.items():
            api.add_collection_item(group.slug, repo, "model", note=note[:500] or None, exists_ok=True)
    return f"{endpoint()}/collections/{group.slug}"


def _check_target(repo: str, upstream: Iterable[str], *, private: bool, is_private: bool) -> None:
    """Raise HubError where publishing would disclose or overwrite something."""
    if private and not is_private:
        raise HubError(
            repo,
            "the repo is public and the manifest says private; nothing was published",
            "set publish.private: false, make the repo private, or use another name",
        )
    weights = any(allowed(name, ("*.safetensors", *model_folder.PICKLES)) for name in upstream)
    if weights and report.FILE_NAME not in upstream:
        raise HubError(
            repo,
            "the repo holds a model that hubplugin did not publish; nothing was published",
            "use another `publish.repo`, or delete that repo first",
        )
