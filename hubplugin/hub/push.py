"""Pushes a folder as one commit and groups repos in a collection.

Knows repos, commits and names of files. Knows no licence, no manifest and no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
)

from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.model_folder import PUSHED
from hubplugin.errors import HubError
from hubplugin.hub import hub_card, targets
from hubplugin.hub.client import clear_errors, connect, endpoint
from hubplugin.hub.upstream import COMMIT_MESSAGE, Edits, edits, record, shown
from hubplugin.progress import progress

CARD = "README.md"


@dataclass(frozen=True)
class Prepared:
    """A folder that may be pushed: its files, and the repo as it stood when it was looked at."""

    folder: Path
    repo: str
    names: tuple[str, ...]
    private: bool  # what is asked for
    gated: bool = False  # whether the repo is, already
    edits: Edits | None = None  # None: there is no such repo yet


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

    Files that an earlier commit of ours left upstream (shards of an earlier version) are deleted by the same commit.
    What others have written since our last commit stays; where it cannot, because our file changed too or is one that
    was measured, this is refused. `force` takes our side in all files that we write. `gated` closes the repo to
    readers who did not ask, before a byte is uploaded. Raises HubError, and then no file was published.
    """
    return commit(prepare(folder, repo, private=private, force=force, files=files), gated=gated)


def prepare(
    folder: Path, repo: str, *, private: bool, force: bool = False, files: tuple[str, ...] = PUSHED
) -> Prepared:
    """Look at a folder, its card and the repo, and change nothing. Raises HubError for what `push` refuses."""
    names = tuple(model_folder.publishable(folder, files))
    api = connect()
    if CARD in names:
        hub_card.check((folder / CARD).read_text("utf-8"), repo)
    with clear_errors(repo):
        if not api.repo_exists(repo):
            return Prepared(folder, repo, names, private)
        return _look(api, folder, repo, names, private, force)


def _look(api: HfApi, folder: Path, repo: str, names: tuple[str, ...], private: bool, force: bool) -> Prepared:
    """A repo that is there, compared with the folder. Raises HubError where publishing would lose something."""
    info = targets.look(api, repo, private=private)
    if info.private and not private:
        progress(f"push   {repo} is private already and stays so")
    found = edits(api, repo, str(info.sha), folder, names)
    if force:
        found = replace(found, kept=tuple(path for path in found.kept if path not in names))
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
    return Prepared(folder, repo, names, private, bool(info.gated), found)


def commit(prepared: Prepared, *, gated: bool = False) -> Pushed:
    """Make the repo where there is none, then the commit, unless it changes nothing. Raises HubError."""
    api, folder, repo, names = connect(), prepared.folder, prepared.repo, prepared.names
    with clear_errors(repo):
        if prepared.edits is None:
            api.create_repo(repo, private=prepared.private, exist_ok=True)
            prepared = _look(api, folder, repo, names, prepared.private, force=False)
        found = prepared.edits
        assert found is not None
        if gated and not prepared.gated:
            api.update_repo_settings(repo, gated="auto")
        deleted = [*found.stale, *(path for path in found.lost if path not in names and found.paths[path] != "deleted")]
        made = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, str(folder / name)) for name in names if name not in found.kept),
                *(CommitOperationDelete(path, is_folder=False) for path in deleted),
            ],
            commit_message=COMMIT_MESSAGE,
            commit_description=record(found, folder, names),
            parent_commit=found.head,
        )
    return Pushed(f"{endpoint()}/{repo}", made.oid, made.oid != found.head)


def collect(title: str, namespace: str, items: Mapping[str, str], private: bool) -> str:
    """Group repos (`items`: repo id -> note) in a collection; items already in it stay. Returns its URL.

    A public collection is not given the names of private repos.
    """
    api = connect()
    with clear_errors(f"collection {title!r} of {namespace}"):
        group = api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
        for repo, note in items.items():
            if not group.private and api.model_info(repo).private:
                progress(f"publish {repo} is private and stays out of the public collection {title!r}")
                continue
            api.add_collection_item(group.slug, repo, "model", note=note[:500] or None, exists_ok=True)
    return f"{endpoint()}/collections/{group.slug}"
