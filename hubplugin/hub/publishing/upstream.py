"""What stands in a repo we publish to, and what others have changed there since our last commit.

Our commits are known by their title; their message names the files that were published, so that what others wrote is
never taken for ours, however many commits of ours come after it. Knows trees of commits and hashes of files, as git and
LFS count them. Uploads nothing.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from huggingface_hub import GitCommitInfo, HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from hubplugin.checkpoint.model_folder import PUSHED, SIGNATURE, WEIGHTS, allowed
from hubplugin.disk import sha256
from hubplugin.hub.client import cache_folder

COMMIT_MESSAGE = "Publish with hubplugin"  # the title by which our own commits are told from others'
# a pull request of ours that was merged has its number behind the title
OURS = re.compile(re.escape(COMMIT_MESSAGE) + r"(?: \(#(?P<number>\d+)\))?")
RECORD = "hubplugin-files: "  # the line of a commit's message that says what was published
SHOWN_LINES, SHOWN_BYTES = 40, 200_000  # of a diff, and of a file that is shown as one
# what the report's numbers are about, and what vouches for it
MEASURED = (
    *WEIGHTS,
    *("config.json", "quantize_config.json", "report.json", "tokenizer.json", "tokenizer.model"),
    SIGNATURE,
)


@dataclass(frozen=True)
class Edits:
    """Where the head differs from what we last published: "changed", "added" or "deleted" by others, by path."""

    since: str | None = None  # our last commit; None: the history has none
    head: str = ""
    paths: Mapping[str, str] = field(default_factory=dict)
    kept: tuple[str, ...] = ()  # paths that a new commit leaves as others made them
    lost: tuple[str, ...] = ()  # paths that a new commit would overwrite, bring back or delete
    stale: tuple[str, ...] = ()  # files of an earlier version of ours, which a new commit deletes
    held: frozenset[str] = frozenset()  # files of ours that the head holds as they are
    there: frozenset[str] = frozenset()  # all paths of the head


@dataclass(frozen=True)
class _Published:
    """What our last commit published."""

    commit: str | None = None
    files: Mapping[str, RepoFile] = field(default_factory=dict)  # our versions, those that did not go up included
    tree: Mapping[str, RepoFile] = field(default_factory=dict)  # all that stood in the repo after it


def edits(api: HfApi, repo: str, head: str, folder: Path, names: Collection[str]) -> Edits:
    """Compare the head with our last commit, and both with the files of a folder that are to be published.

    A file that others changed and we did not is left as they made it, but for what the report's numbers are about.
    """
    ours, after = _last_published(api, repo, head), _tree(api, repo, head)
    held = frozenset(name for name in names if name in after and _holds(folder / name, after[name]))
    paths: dict[str, str] = {}
    kept: list[str] = []
    lost: list[str] = []
    stale: list[str] = []
    for path in sorted(ours.files.keys() | after.keys()):
        was, now, local = ours.files.get(path), after.get(path), folder / path if path in names else None
        what = _difference(was, now)
        if what is None:
            stale += [path] if local is None else []
        elif path in held or not (now or local):
            continue  # the same edit on both sides
        elif local or allowed(path, PUSHED) or (ours.commit and _difference(ours.tree.get(path), now)):
            paths[path] = what
            (kept if _stays(path, was, local) else lost).append(path)
    return Edits(ours.commit, head, paths, tuple(kept), tuple(lost), tuple(stale), held, frozenset(after))


def _stays(path: str, was: RepoFile | None, local: Path | None) -> bool:
    """Whether what others made of a path can stand beside what we publish."""
    if local is None:  # loaders would read weights of theirs beside ours
        return not allowed(path, WEIGHTS if was is None else MEASURED)
    return was is not None and _holds(local, was) and not allowed(path, MEASURED)


def record(edits: Edits, folder: Path, names: Iterable[str]) -> str:
    """The message of our commit: the files we publish, and the git hashes of ours where those of others stay."""
    files = {name: git_hash((folder / name).read_bytes()) if name in edits.kept else None for name in names}
    return RECORD + json.dumps(files)


def _last_published(api: HfApi, repo: str, head: str) -> _Published:
    """By the last commit of ours in the history of `head`."""
    commits = api.list_repo_commits(repo, revision=head)
    last = next((commit for commit in commits if OURS.fullmatch(commit.title)), None)
    if last is None:
        return _Published()
    tree, listed = _tree(api, repo, last.commit_id), _recorded(_message(api, repo, last))
    if listed is None:  # an earlier release: it left no other file of the allow-list in the repo
        files = {path: file for path, file in tree.items() if allowed(path, PUSHED)}
    else:
        replaced = {path: RepoFile(path=path, size=0, oid=oid) for path, oid in listed.items() if oid}
        files = {path: file for path, file in tree.items() if path in listed} | replaced
    return _Published(last.commit_id, files, tree)


def _message(api: HfApi, repo: str, ours: GitCommitInfo) -> str:
    """The message of a commit of ours. One that merged our pull request has a message of the Hub's in its place."""
    merged = OURS.fullmatch(ours.title)
    if merged is None or merged["number"] is None:
        return ours.message
    request = api.list_repo_commits(repo, revision=f"refs/pr/{merged['number']}")
    return next((commit.message for commit in request if commit.title == COMMIT_MESSAGE), "")


def _recorded(message: str) -> dict[str, str | None] | None:
    """What `record` wrote; None where a message holds nothing of the kind."""
    lines = [line.removeprefix(RECORD) for line in message.splitlines() if line.startswith(RECORD)]
    try:
        files = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return files if isinstance(files, dict) else None


def shown(api: HfApi, repo: str, edits: Edits, folder: Path) -> list[str]:
    """The edits in lines: what happened to each path, and how small texts differ from ours."""
    lines = []
    for path, what in edits.paths.items():
        lines.append(f"{what} by others: {path}")
        if (folder / path).is_file() and what != "deleted":
            lines += _diff(api, repo, path, edits.head, folder)
    return ["".join(letter if letter.isprintable() or letter == "\t" else "�" for letter in line) for line in lines]


def _diff(api: HfApi, repo: str, path: str, head: str, folder: Path) -> list[str]:
    """How the folder's file differs from the repo's, where both are small texts; otherwise nothing."""
    theirs, local = _text(api, repo, path, head), folder / path
    if theirs is None or local.stat().st_size > SHOWN_BYTES:
        return []
    names, ours = (f"{repo}/{path}", f"{folder.name}/{path}"), local.read_text("utf-8", "replace")
    lines = list(difflib.unified_diff(theirs.splitlines(), ours.splitlines(), *names, lineterm="", n=1))
    more = len(lines) - SHOWN_LINES
    return [*lines[:SHOWN_LINES], *([f"... {more} more lines"] if more > 0 else [])]


def _text(api: HfApi, repo: str, path: str, revision: str) -> str | None:
    """A small text of the repo; None where it is large or no text."""
    (info,) = api.get_paths_info(repo, [path], revision=revision)
    if not isinstance(info, RepoFile) or info.lfs or info.size > SHOWN_BYTES:
        return None
    try:
        return Path(api.hf_hub_download(repo, path, revision=revision, cache_dir=cache_folder())).read_text("utf-8")
    except UnicodeDecodeError:
        return None


def _tree(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    listed = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {file.path: file for file in listed if isinstance(file, RepoFile)}


def _difference(was: RepoFile | None, now: RepoFile | None) -> str | None:
    """What happened to a path; None where nothing did."""
    if was is None or now is None:
        return "added" if now else "deleted" if was else None
    return None if _hash(was) == _hash(now) else "changed"


def _hash(file: RepoFile) -> str:
    return file.lfs.sha256 if file.lfs else file.blob_id


def _holds(local: Path, file: RepoFile) -> bool:
    """Whether a file on this disk holds what the repo's does."""
    stat = local.stat()
    if stat.st_size != file.size and file.size:
        return False
    return _local_hash(local, stat.st_size, stat.st_mtime_ns, file.lfs is not None) == _hash(file)


@lru_cache(maxsize=1024)
def _local_hash(local: Path, size: int, changed: int, lfs: bool) -> str:
    """The hash of a file as LFS or git counts it. Large files are read once, however often a repo is looked at."""
    return sha256(local) if lfs else str(git_hash(local.read_bytes()))
