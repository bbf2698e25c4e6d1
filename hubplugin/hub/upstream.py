"""What stands in a repo we publish to, and what others have changed there since our last commit.

Knows trees of commits and hashes of files, as git and LFS count them. Uploads nothing.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from hubplugin.checkpoint.model_folder import PUSHED, WEIGHTS, allowed
from hubplugin.disk import sha256

COMMIT_MESSAGE = "Publish with hubplugin"  # the title by which our own commits are told from others'
SHOWN_LINES, SHOWN_BYTES = 40, 200_000  # of a diff, and of a file that is shown as one
MEASURED = (*WEIGHTS, "config.json", "quantize_config.json", "report.json")  # what the report's numbers are about


@dataclass(frozen=True)
class Edits:
    """Where the head differs from our last commit in files that we write: "changed", "added" or "deleted", by path."""

    since: str | None  # our last commit; None: the history has none
    head: str
    paths: Mapping[str, str]
    kept: tuple[str, ...]  # paths that a new commit leaves as others made them
    lost: tuple[str, ...]  # paths that a new commit would overwrite or bring back


def edits(api: HfApi, repo: str, head: str, folder: Path, names: Iterable[str]) -> Edits:
    """Compare the head with our last commit, and both with the files of a folder that are to be published.

    A file that others changed and we did not is left as they made it, but for what the report's numbers are about.
    """
    since = next((c.commit_id for c in api.list_repo_commits(repo) if c.title == COMMIT_MESSAGE), None)
    if since == head:
        return Edits(since, head, {}, (), ())
    before, after = _tree(api, repo, since) if since else {}, _tree(api, repo, head)
    changed = {path for path in before.keys() & after.keys() if _hash(before[path]) != _hash(after[path])}
    found = {
        **dict.fromkeys(sorted(changed), "changed"),
        **dict.fromkeys(sorted(after.keys() - before.keys()), "added"),
        **dict.fromkeys(sorted(before.keys() - after.keys()), "deleted"),
    }
    kept: list[str] = []
    lost: list[str] = []
    to_publish = set(names)
    paths = {path: what for path, what in found.items() if path in to_publish or allowed(path, PUSHED)}
    for path in paths:
        ours = _local_hash(folder / path, after.get(path) or before[path]) if path in to_publish else None
        if path in after and ours == _hash(after[path]):
            continue  # the same edit on both sides
        if ours is None:
            (kept if paths[path] == "added" or not allowed(path, MEASURED) else lost).append(path)
        elif path in before and ours == _hash(before[path]) and not allowed(path, MEASURED):
            kept.append(path)
        else:
            lost.append(path)
    return Edits(since, head, paths, tuple(kept), tuple(lost))


def shown(api: HfApi, repo: str, edits: Edits, folder: Path) -> list[str]:
    """The edits in lines: what happened to each path, and how small texts that would be lost differ from ours."""
    lines = [f"{what} by others: {path}" for path, what in edits.paths.items()]
    for path in edits.lost:
        theirs = "" if edits.paths[path] == "deleted" else _text(api, repo, path, edits.head)
        ours = (folder / path).read_text("utf-8", "replace") if theirs is not None and (folder / path).is_file() else ""
        if theirs is not None and len(ours) <= SHOWN_BYTES:
            names = (f"{repo}/{path}", f"{folder.name}/{path}")
            diff = difflib.unified_diff(theirs.splitlines(), ours.splitlines(), *names, lineterm="", n=1)
            lines += list(diff)[:SHOWN_LINES]
    return lines


def _text(api: HfApi, repo: str, path: str, revision: str) -> str | None:
    """A small text of the repo; None where it is large or no text."""
    (info,) = api.get_paths_info(repo, [path], revision=revision)
    if not isinstance(info, RepoFile) or info.lfs or info.size > SHOWN_BYTES:
        return None
    try:
        return Path(api.hf_hub_download(repo, path, revision=revision)).read_text("utf-8")
    except UnicodeDecodeError:
        return None


def _tree(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    listed = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {file.path: file for file in listed if isinstance(file, RepoFile)}


def _hash(file: RepoFile) -> str:
    return file.lfs.sha256 if file.lfs else file.blob_id


def _local_hash(path: Path, like: RepoFile) -> str:
    """A local file's hash, of the kind that the repo's file has."""
    return sha256(path) if like.lfs else git_hash(path.read_bytes())
