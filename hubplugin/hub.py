"""The Hub: pull a base at a pinned commit, peek at its headers, push a folder as one commit, group repos.

The only importer of huggingface_hub. This file knows no torch and nothing about compression; it moves files,
never their meaning. HF_ENDPOINT, HF_TOKEN and HF_HOME are respected; the token is never read here, the client
takes it from the environment or the stored login by itself.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    try_to_load_from_cache,
)
from huggingface_hub import errors as client

from hubplugin import folder as model_folder
from hubplugin import report
from hubplugin.errors import CheckpointError, HubError
from hubplugin.folder import INDEX, PULLED, PUSHED, SINGLE, allowed
from hubplugin.plan import Header

ALLOW = list(PULLED)
IGNORE = ["*/*"]  # the client's patterns cross slashes: without this, original/tokenizer.model would come along


@dataclass(frozen=True)
class Snapshot:
    """A base model on this disk. Read-only: files of a pulled snapshot are links into the shared cache."""

    path: Path
    repo: str  # Hub id, or the local folder's name
    sha: str | None  # commit; None for a local folder
    on_hub: bool
    licence: str | None
    licence_name: str | None
    licence_link: str | None
    languages: tuple[str, ...]
    gated: bool


def fingerprint(snapshot: Snapshot) -> str:
    """What tells one state of a base from another: its commit; for a local folder, its files' sizes and times."""
    if snapshot.sha is not None:
        return f"{snapshot.repo}@{snapshot.sha}"
    files = sorted(file for file in snapshot.path.iterdir() if file.is_file())
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


@dataclass(frozen=True)
class Peek:
    """What config.json and the safetensors headers say. No weight was read."""

    repo: str
    sha: str | None
    on_hub: bool
    config: dict[str, Any]
    tensors: dict[str, Header]


@dataclass(frozen=True)
class Pushed:
    """Where a folder was published."""

    url: str
    commit: str
    changed: bool  # False: the repo already held exactly these files, no commit was made


def pull(model: str, folder: Path) -> Snapshot:
    """Bring a base onto this disk: "owner/name[@revision]", or a local folder relative to `folder`.

    Raises HubError for each thing that can be wrong: a missing or gated repo, the token, the revision, the
    disk, the network, remote code, no safetensors, no config.json, no tokenizer.
    """
    local = _local(model, folder)
    if local:
        path, repo, sha, gated = local, local.name, None, False
        model_folder.check_names((entry.name for entry in local.iterdir()), model)
    else:
        repo, _, revision = model.partition("@")
        path, sha, gated = _download(repo, revision or "main", model)
    model_folder.read_config(path, model)
    card = model_folder.card_metadata(path)
    return Snapshot(
        path=path,
        repo=repo,
        sha=sha,
        on_hub=local is None,
        licence=", ".join(_texts(card.get("license"))) or None,
        licence_name=", ".join(_texts(card.get("license_name"))) or None,
        licence_link=", ".join(_texts(card.get("license_link"))) or None,
        languages=_texts(card.get("language")),
        # a card that asks readers for something shows the gate also offline and in a copied folder
        gated=gated or any(str(key).startswith("extra_gated_") for key in card),
    )


def peek(model: str, folder: Path) -> Peek:
    """Read config.json and the safetensors headers only, by ranged requests where the model is on a Hub.

    Raises HubError as `pull` does, and CheckpointError for a damaged header or a missing shard.
    """
    local = _local(model, folder)
    if local:
        model_folder.check_names((entry.name for entry in local.iterdir()), model)
        config = model_folder.read_config(local, model)
        return Peek(local.name, None, False, config, model_folder.headers(local))
    repo, _, revision = model.partition("@")
    if constants.HF_HUB_OFFLINE:
        path, sha, _ = _download(repo, revision or "main", model)
        return Peek(repo, sha, True, model_folder.read_config(path, model), model_folder.headers(path))
    api = _api()
    with _clear_errors(model):
        info = api.model_info(repo, revision=revision or "main")
        sha = str(info.sha)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        model_folder.check_names(names, model)
        small = [name for name in ("config.json", "tokenizer_config.json", INDEX) if name in names]
        copies = [api.hf_hub_download(repo, name, revision=sha, cache_dir=_cache()) for name in small]
        path = Path(copies[0]).parent
        config = model_folder.read_config(path, model)
        files = [SINGLE] if SINGLE in names else model_folder.shards(path)
        with ThreadPoolExecutor(8) as pool:
            parsed = pool.map(lambda file: api.parse_safetensors_file_metadata(repo, file, revision=sha), files)
            tensors = {
                name: Header(dtype=str(info.dtype), shape=tuple(info.shape))
                for file in parsed
                for name, info in file.tensors.items()
            }
    return Peek(repo, sha, True, config, tensors)


def push(folder: Path, repo: str, *, private: bool, gated: bool = False, files: tuple[str, ...] = PUSHED) -> Pushed:
    """Publish a folder as exactly one commit on main, or as none where nothing changed.

    Files of the allow-list that stand upstream but not in the folder (shards of an earlier version) are
    deleted by the same commit; other files upstream are left alone. `gated` closes the repo to readers who did
    not ask, before a byte is uploaded. Raises HubError, and then no file was published.
    """
    names = model_folder.publishable(folder, files)
    api = _api()
    with _clear_errors(repo):
        if not api.repo_exists(repo):
            api.create_repo(repo, private=private, exist_ok=True)
        info = api.model_info(repo)
        upstream = [sibling.rfilename for sibling in info.siblings or ()]
        _check_target(repo, upstream, private=private, is_private=bool(info.private))
        if info.private and not private:
            report.progress(f"push   {repo} is private already and stays so")
        api.auth_check(repo, write=True)
        if gated and not info.gated:
            api.update_repo_settings(repo, gated="auto")
        stale = [name for name in upstream if name not in names and allowed(name, files)]
        commit = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, str(folder / name)) for name in names),
                *(CommitOperationDelete(name, is_folder=False) for name in stale),
            ],
            commit_message="Publish with hubplugin",
            parent_commit=info.sha,
        )
    return Pushed(f"{endpoint()}/{repo}", commit.oid, commit.oid != info.sha)


def collect(title: str, namespace: str, items: Mapping[str, str], private: bool) -> str:
    """Group repos (`items`: repo id -> note) in a collection; what is there already stays. Returns its URL."""
    api = _api()
    with _clear_errors(f"collection {title!r} of {namespace}"):
        group = api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
        for repo, note in items.items():
            api.add_collection_item(group.slug, repo, "model", note=note[:500] or None, exists_ok=True)
    return f"{endpoint()}/collections/{group.slug}"


def licence_allows(base: report.Base, accept: bool) -> None:
    """Pure. Raise HubError where a derivative of `base` may not be published.

    No-derivatives licences: never. Gated bases and licences that put duties on derivatives: only where the
    manifest accepts them.
    """
    licence = (base.licence or "").lower()
    words = licence.replace(",", "-").replace(" ", "-").split("-")
    if "nd" in words:
        raise HubError(
            f"{base.repo}: licence {licence}",
            "a no-derivatives licence forbids publishing a compressed model",
            "remove `publish:` and keep the variants on this machine",
        )
    duties = "nc" in words or any(word.startswith(("llama", "gemma", "other")) or "rail" in word for word in words)
    if (duties or base.gated) and not accept:
        why = f"its licence ({base.licence_name or licence}) puts duties on derivatives" if duties else "is gated"
        raise HubError(
            f"{base.repo}: licence",
            f"{why}, and the manifest does not accept that",
            "read the licence, then set publish.accept_license: true",
        )


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, else the public one. Raises HubError for one that carries a password,
    which would be shown wherever the address is."""
    address = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    if "@" in urlsplit(address).netloc:
        raise HubError("HF_ENDPOINT", "carries a user name or password", "remove them; access is what HF_TOKEN is for")
    return address


def _api() -> HfApi:
    """A client for the endpoint of this moment."""
    _announce(endpoint())
    return HfApi(endpoint=endpoint(), library_name="hubplugin")


@cache
def _announce(address: str) -> None:
    """Say once where requests go, since the token goes there too."""
    report.progress(f"hub    {address}")
    parts = urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        report.progress("hub    warning: this is not https; whoever listens on the way can read your token")


def _cache() -> Path:
    """The folder the client caches in, by the environment of this moment."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def _local(model: str, folder: Path) -> Path | None:
    """The local folder that a manifest means, or None where it means a repo."""
    path = folder / Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if model.startswith(("./", "../", "/", "~")):
        raise HubError(model, f"there is no folder {path}", "give a path relative to the manifest, or a Hub id")
    return None


def _download(repo: str, revision: str, where: str) -> tuple[Path, str, bool]:
    """Pin the revision to a commit, then fetch the allow-list. Returns folder, commit, whether it is gated."""
    api, cache = _api(), _cache()
    with _clear_errors(where):
        if constants.HF_HUB_OFFLINE:
            cached = api.snapshot_download(
                repo,
                revision=revision,
                cache_dir=cache,
                allow_patterns=ALLOW,
                ignore_patterns=IGNORE,
                local_files_only=True,
            )
            model_folder.check_names((entry.name for entry in Path(cached).iterdir()), where)
            return Path(cached), Path(cached).name, False
        info = api.model_info(repo, revision=revision, files_metadata=True)
        sha = str(info.sha)
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        model_folder.check_names(sizes, where)
        missing = [
            name
            for name in sizes
            if allowed(name, PULLED) and not isinstance(try_to_load_from_cache(repo, name, cache, sha), str)
        ]
        _check_disk(cache, sum(sizes[name] for name in missing), where)
        report.progress(f"pull   {repo}@{sha[:12]}, {len(missing)} files to fetch")
        path = api.snapshot_download(repo, revision=sha, cache_dir=cache, allow_patterns=ALLOW, ignore_patterns=IGNORE)
    return Path(path), sha, bool(info.gated)


def _check_disk(cache: Path, needed: int, where: str) -> None:
    """Raise HubError before a download that cannot end well."""
    place = next(parent for parent in (cache.absolute(), *cache.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        what = f"needs {needed / 1e6:.1f} MB, and the disk of {cache} has {free / 1e6:.1f} MB free"
        raise HubError(where, what, "free some space, or set HF_HOME to a larger disk")


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


@contextmanager
def _clear_errors(where: str) -> Iterator[None]:
    """Turn whatever the client raises into a HubError that says what to do."""
    try:
        yield
    except client.SafetensorsParsingError as error:
        raise CheckpointError(where, _line(error), "the upload is damaged; ask its owner to repeat it") from error
    except (OSError, httpx2.HTTPError, client.EntryNotFoundError, client.XetDownloadError) as error:
        raise _translated(error, where) from error
    except (
        ValueError,
        RuntimeError,
    ) as error:  # refused ids and card metadata; failures inside the Xet transfer
        raise HubError(where, _line(error), "mend what the Hub names here, then try again") from error


def _translated(error: Exception, where: str) -> HubError:
    """What goes wrong, in the user's words. LocalEntryNotFoundError wraps some causes: look inside."""
    if isinstance(error, client.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status = error.response.status_code if isinstance(error, client.HfHubHTTPError) else 0
    page = f"{endpoint()}/{where.partition('@')[0]}"
    if isinstance(error, client.GatedRepoError):
        what = "the model is gated and this token has no access to it"
        fix = f"open {page}, ask for access, then set HF_TOKEN to a token of that account"
    elif isinstance(error, client.RepositoryNotFoundError):
        what = "there is no such repo, or it is private and this token cannot see it"
        fix = "check the spelling; for a private repo set HF_TOKEN"
    elif isinstance(error, client.RevisionNotFoundError):
        what = "the repo exists, this revision of it does not"
        fix = f"use a branch, a tag or a commit of {page}"
    elif isinstance(error, client.OfflineModeIsEnabled) or (
        isinstance(error, client.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    ):
        what = "HF_HUB_OFFLINE is set and the cache does not hold the whole model"
        fix = "unset HF_HUB_OFFLINE and pull once with a network"
    elif status == 401:
        what, fix = "the Hub does not accept this token (401)", "set HF_TOKEN to a valid token, or unset it"
    elif status == 403:
        what = f"this token may not do that (403): {_line(error)}"
        fix = "use a token with write access to this owner, or another `publish.repo`"
    elif status == 412:
        what, fix = "the branch moved while we were publishing; nothing was published", "publish again"
    elif status:
        what, fix = f"the Hub answered {status}: {_line(error)}", "try again later"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, fix = f"the disk of {_cache()} is full", "free some space, or set HF_HOME to a larger disk"
    elif isinstance(error, httpx2.HTTPError | ConnectionError | TimeoutError):
        what = f"cannot reach {endpoint()}: {_line(error)}"
        fix = "check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what is cached"
    else:
        what, fix = _line(error), f"check the space and the rights of {_cache()}"
    return HubError(where, what, fix)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__


def _texts(value: Any) -> tuple[str, ...]:
    """A metadata field that may be a string or a list of strings. Anything else is no answer."""
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, str))
