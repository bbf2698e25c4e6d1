"""Pulls a base at a pinned commit, or reads only its config and safetensors headers.

Knows repos, commits, the cache and local folders. Knows no torch and nothing about compression.
"""

import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import (
    ModelInfo,
    constants,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import repo_folder_name

from hubplugin import report
from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.headers import Header
from hubplugin.checkpoint.model_folder import INDEX, PULLED, SINGLE, allowed
from hubplugin.disk import digest, sha256, write_atomically
from hubplugin.errors import HubError
from hubplugin.hub import stored_head
from hubplugin.hub.client import cache_folder, clear_errors, connect
from hubplugin.manifest.model_name import cached_snapshot
from hubplugin.model.architectures import configs
from hubplugin.progress import progress

ALLOW = (*PULLED, report.FILE_NAME)  # the report of a base that is a variant says what that was made from
REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
# the client's patterns cross slashes: without these, original/model-1.safetensors would come along
IGNORE = model_folder.outside(model_folder.NAMED_TEMPLATES)


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a base's name and repo, and its card, say of it."""

    repo: str  # Hub id, or the local folder's name
    sha: str | None  # commit; None for a local folder
    on_hub: bool
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    languages: tuple[str, ...] = ()
    gated: bool = False
    root: str | None = None  # repo that a base which is a variant was made from
    published: str | None = None  # repo that a variant in a local folder goes to, as its report says
    # what the Hub says of the repo at the moment, not of the commit; None: it was not asked
    private: bool | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Snapshot(Known):
    """A base model on this disk. Read-only: files of a pulled snapshot are links into the shared cache."""

    path: Path
    # files of the repo that are not on this disk; without a network nobody says which, and they are none
    not_pulled: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Brought:
    """Files of a repo at a commit, in the client's cache."""

    path: Path
    sha: str
    names: tuple[str, ...]  # of all files of the repo; without a network, of those that are here
    info: ModelInfo | None = None  # the Hub's record; None: it was not asked


def contents_digest(folder: Path) -> str:
    """A digest of all files that variants of a base in a folder take from: its card decides nothing but their cards."""
    listed = [name for name in model_folder.listing(folder) if allowed(name, PULLED) and name != "README.md"]
    return digest(repr([(name, sha256(folder / name)) for name in listed]))


@dataclass(frozen=True, kw_only=True)
class Peek(Known):
    """What config.json and the safetensors headers say. No weight was read."""

    config: dict[str, Any]
    tensors: dict[str, Header]


def pull(model: str, folder: Path, revision: str | None = None) -> Snapshot:
    """Bring a base onto this disk: "owner/name[@revision]", or a local folder relative to `folder`.

    `revision` is taken in place of the one that is named. Raises HubError for each thing that can be wrong: a missing
    or gated repo, the token, the revision, the disk, the network, remote code, no safetensors, no config.json, no
    tokenizer.
    """
    if local := _local(model, folder):
        _check_local(local, model)
        configs.read_config(local, model)
        return Snapshot(path=local, **_named(local), **_terms(local))
    repo, _, named_revision = model.partition("@")
    brought = _download(repo, revision or named_revision or "main", model)
    path, info = brought.path, brought.info
    configs.read_config(path, model)
    left = tuple(name for name in brought.names if info and not allowed(name, PULLED))
    return Snapshot(path=path, repo=repo, sha=brought.sha, on_hub=True, not_pulled=left, **_terms(path, info))


def peek(model: str, folder: Path) -> Peek:
    """Read config.json, the card and the safetensors headers only, by ranged requests where the model is on a Hub.

    Raises HubError as `pull` does, and CheckpointError for a damaged header or a missing shard.
    """
    if local := _local(model, folder):
        _check_local(local, model)
        config = configs.read_config(local, model)
        return Peek(config=config, tensors=model_folder.headers(local), **_named(local), **_terms(local))
    repo, _, revision = model.partition("@")
    if constants.HF_HUB_OFFLINE:
        brought = _download(repo, revision or "main", model)
        path, sha = brought.path, brought.sha
        config, tensors = configs.read_config(path, model), model_folder.headers(path)
        return Peek(config=config, tensors=tensors, repo=repo, sha=sha, on_hub=True, **_terms(path))
    api = connect()
    with clear_errors(model):
        info = api.model_info(repo, revision=revision or "main")
        sha = str(info.sha)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        model_folder.check_names(names, model)
        wanted = ("config.json", "tokenizer_config.json", "README.md", report.FILE_NAME, INDEX)
        small = [name for name in wanted if name in names]
        copies = [api.hf_hub_download(repo, name, revision=sha, cache_dir=cache_folder()) for name in small]
        path = Path(copies[0]).parent
        config = configs.read_config(path, model)
        files = [SINGLE] if SINGLE in names else model_folder.shards(path)
        with ThreadPoolExecutor(8) as pool:
            read = pool.map(lambda file: api.parse_safetensors_file_metadata(repo, file, revision=sha), files)
            parsed = dict(zip(files, read, strict=True))
        tensors = {
            name: Header(dtype=str(stored.dtype), shape=tuple(stored.shape))
            for file in parsed.values()
            for name, stored in file.tensors.items()
        }
        if stored_head.differs(repo, sha, parsed, config):
            config = {**config, "tie_word_embeddings": False}
    return Peek(config=config, tensors=tensors, repo=repo, sha=sha, on_hub=True, **_terms(path, info))


def _check_local(local: Path, model: str) -> None:
    """Raise HubError where a folder cannot be a base: a part is missing, or a link of the cache leads nowhere."""
    try:
        model_folder.check_names((entry.name for entry in local.iterdir() if entry.exists()), model)
    except HubError as error:
        if (cached := cached_snapshot(local)) is None:
            raise
        fix = f"write model: {'@'.join(cached)}, which pulls what this folder of the cache lacks"
        raise HubError(error.where, error.what, fix) from error


def _named(local: Path) -> dict[str, Any]:
    """A folder's own name; of a snapshot in the cache of the Hub's client, repo and commit."""
    cached = cached_snapshot(local)
    repo, sha = cached or (local.name, None)
    return {"repo": repo, "sha": sha, "on_hub": cached is not None}


def _terms(path: Path, info: ModelInfo | None = None) -> dict[str, Any]:
    """What the card in a folder says of passing it on, and what the Hub says of the repo."""
    card = model_folder.card_metadata(path)
    return {
        "licence": ", ".join(_texts(card.get("license"))) or None,
        "licence_name": ", ".join(_texts(card.get("license_name"))) or None,
        "licence_link": ", ".join(_texts(card.get("license_link"))) or None,
        "languages": _texts(card.get("language")),
        # a card that asks readers for something shows the gate also offline and in a copied folder
        "gated": bool(info and info.gated) or any(str(key).startswith("extra_gated_") for key in card),
        "private": bool(info.private) if info else None,
        **_origin(path),
    }


def _origin(path: Path) -> dict[str, str | None]:
    """Where a base that is itself a variant comes from and goes to, as its report says; nothing of any other."""
    try:
        made = json.loads((path / report.FILE_NAME).read_text("utf-8"))
        base, repo = made["base"], made.get("repo")
        root = base.get("root") or (base["repo"] if base["on_hub"] else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    names = {"root": root, "published": repo}
    return {key: name for key, name in names.items() if isinstance(name, str) and REPO.fullmatch(name)}


def _local(model: str, folder: Path) -> Path | None:
    """The local folder that a manifest means, or None where it means a repo."""
    path = folder / Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if model.startswith(("./", "../", "/", "~")):
        raise HubError(model, f"there is no folder {path}", "give a path relative to the manifest, or a Hub id")
    return None


def _download(repo: str, revision: str, where: str) -> Brought:
    """The files of a base, where its repo has those that one needs."""

    def check(names: Collection[str]) -> tuple[str, ...]:
        model_folder.check_names(names, where)
        return ()

    return bring(repo, revision, where, ALLOW, check)


def bring(
    repo: str,
    revision: str,
    where: str,
    patterns: tuple[str, ...],
    further: Callable[[Collection[str]], tuple[str, ...]] = lambda _: (),
) -> Brought:
    """Pin a revision to a commit, then fetch the files of these patterns into the client's cache.

    `further` is given the names of all files before any is fetched: it may refuse them, or add patterns. Without a
    network (HF_HUB_OFFLINE) the cache is looked up. Raises HubError, which `where` leads.
    """
    with clear_errors(where):
        if constants.HF_HUB_OFFLINE:
            path = cached(repo, revision, patterns)
            names = tuple(sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()))
            further(names)
            return Brought(path, path.name, names)
        info = connect().model_info(repo, revision=revision, files_metadata=True)
        sha, sizes = str(info.sha), {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        path = _fetch(repo, sha, sizes, (*patterns, *further(sizes)), where)
        _remember(repo, revision, sha)
        return Brought(path, sha, tuple(sorted(sizes)), info)


def _fetch(repo: str, sha: str, sizes: Mapping[str, int], patterns: tuple[str, ...], where: str) -> Path:
    """Fetch the files of these patterns at a commit into the client's cache; `sizes` are bytes of all files, by path.

    Raises HubError where the disk has no room, and what the client raises.
    """
    cache = cache_folder()
    missing = [
        name
        for name in sizes
        if allowed(name, patterns) and not isinstance(try_to_load_from_cache(repo, name, cache, sha), str)
    ]
    _check_disk(cache, sum(sizes[name] for name in missing), where)
    progress(f"pull   {repo}@{sha[:12]}, {len(missing)} files to fetch")
    path = connect().snapshot_download(
        repo, revision=sha, cache_dir=cache, allow_patterns=list(patterns), ignore_patterns=IGNORE
    )
    return Path(path)


def cached(repo: str, revision: str, patterns: tuple[str, ...]) -> Path:
    """Where the client's cache holds a repo's files of these patterns, without asking the Hub."""
    path = connect().snapshot_download(
        repo,
        revision=revision,
        cache_dir=cache_folder(),
        allow_patterns=list(patterns),
        ignore_patterns=IGNORE,
        local_files_only=True,
    )
    return Path(path)


def _remember(repo: str, revision: str, sha: str) -> None:
    """Note in the client's cache which commit a branch or tag meant, for a later run without a network.

    The client notes it only where it resolves the name itself, which could give another commit than the pinned one.
    (The layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.)
    """
    if revision != sha:
        note = cache_folder() / repo_folder_name(repo_id=repo, repo_type="model") / "refs" / revision
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, sha)


def _check_disk(cache: Path, needed: int, where: str) -> None:
    """Raise HubError before a download that cannot end well."""
    place = next(parent for parent in (cache.absolute(), *cache.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        what = f"needs {needed / 1e6:.1f} MB, and the disk of {cache} has {free / 1e6:.1f} MB free"
        raise HubError(where, what, "free some space, or set HF_HOME to a larger disk")


def _texts(value: Any) -> tuple[str, ...]:
    """A metadata field that may be a string or a list of strings. Anything else is no answer."""
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, str))
