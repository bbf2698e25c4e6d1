"""The Hub client: address, cache, and every error of huggingface_hub with its cause and remedy.

Knows HF_ENDPOINT and HF_HOME, and whose token requests carry: one that a caller hands in for a block of calls, else
what huggingface_hub finds in HF_TOKEN or the stored login. Stores no token. Knows no model files.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    errors,
    get_token,
)
from huggingface_hub.utils import build_hf_headers, parse_ratelimit_headers

from hubplugin.errors import CheckpointError, HubError, HubUnreachable, one_line
from hubplugin.progress import progress

# a token, False for none at all, or None for this machine's own
Token = str | Literal[False] | None

REFUSED = re.compile(r"HTTP status (?:client|server) error \((\d{3})")

# of this thread or task alone: calls for one person do not see the token of another
_token: ContextVar[Token] = ContextVar("token", default=None)
_cache: ContextVar[Path | None] = ContextVar("cache", default=None)


@contextmanager
def acting_for(token: Token, cache: Path | None = None) -> Iterator[None]:
    """Requests inside the block carry this token, and what they download goes to `cache`, where one is given."""
    token_before = _token.set(token)
    cache_before = _cache.set(cache or _cache.get())
    try:
        yield
    finally:
        _cache.reset(cache_before)
        _token.reset(token_before)


def token_in_use() -> str | None:
    """The token that requests carry at this moment; None: they carry none."""
    given = _token.get()
    return get_token() if given is None else given or None


def user_name() -> str:
    """Whose token is in use. Raises HubError where there is none, or the Hub does not accept it."""
    with clear_errors("token"):
        return str(connect().whoami()["name"])


def hidden(model: str) -> bool:
    """Whether a repo, as owner/name or owner/name@revision, is read only by some: it is private, or gated."""
    repo, _, revision = model.partition("@")
    with clear_errors(model):
        info = connect().model_info(repo, revision=revision or None)
    return bool(info.private or info.gated)


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, else the public one. Raises HubError for one that carries a password,
    which would be shown wherever the address is."""
    address = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    if "@" in urlsplit(address).netloc:
        raise HubError("HF_ENDPOINT", "carries a user name or password", "remove them; access is what HF_TOKEN is for")
    return address


def connect() -> HfApi:
    """A client for the endpoint of this moment."""
    _announce(endpoint())
    return HfApi(endpoint=endpoint(), token=_token.get(), library_name="hubplugin")


def headers() -> dict[str, str]:
    """What a request to the Hub carries that is not made by the client itself."""
    return build_hf_headers(token=_token.get(), library_name="hubplugin")


@cache
def _announce(address: str) -> None:
    """Say once where requests go, since the token goes there too."""
    progress(f"hub    {address}")
    parts = urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        progress("hub    warning: this is not https; whoever listens on the way can read your token")


def cache_folder() -> Path:
    """The folder the client caches in, by the environment of this moment."""
    if (chosen := _cache.get()) is not None:
        return chosen
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    return Path(constants.HF_HUB_CACHE)


def assets_folder(kind: str) -> Path:
    """Where the client has other packages keep what they made: a folder per package and kind."""
    assets = os.environ.get("HF_ASSETS_CACHE") or cache_folder().parent / "assets"
    return Path(assets).expanduser() / "hubplugin" / kind / "default"


@contextmanager
def clear_errors(where: str) -> Iterator[None]:
    """Turn whatever the client raises into a HubError that says what to do."""
    try:
        yield
    except errors.SafetensorsParsingError as error:
        raise CheckpointError(where, one_line(error), "the upload is damaged; ask its owner to repeat it") from error
    except (OSError, httpx2.HTTPError, errors.EntryNotFoundError, errors.XetDownloadError) as error:
        raise _translated(error, where) from error
    except (ValueError, RuntimeError) as error:  # refused ids and card metadata; failures inside a transfer
        if isinstance(error.__cause__, OSError | httpx2.HTTPError):
            raise _translated(error.__cause__, where) from error
        raise HubError(where, one_line(error), "mend what the Hub names here, then try again") from error


def _translated(error: Exception, where: str) -> HubError:
    """An error of the client with its remedy. LocalEntryNotFoundError wraps its cause, which says more."""
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status, said = _answer(error)
    page = f"{endpoint()}/{where.partition('@')[0]}"
    if isinstance(error, errors.GatedRepoError):
        what = "the model is gated and this token has no access to it"
        fix = f"open {page}, ask for access, then set HF_TOKEN to a token of that account"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = "there is no such repo, or it is private and this token cannot see it"
        fix = "check the spelling; for a private repo set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        what = "the repo exists, this revision of it does not"
        fix = f"use a branch, a tag or a commit of {page}"
    elif isinstance(error, errors.OfflineModeIsEnabled) or (
        isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE
    ):
        what = "HF_HUB_OFFLINE is set and the cache does not hold the whole model"
        return HubUnreachable(where, what, "unset HF_HUB_OFFLINE and pull once with a network")
    elif status == 401:
        what, fix = "the Hub does not accept this token (401)", "set HF_TOKEN to a valid token, or unset it"
    elif status == 403:
        what = f"this token may not do that (403): {said}"
        fix = "use a token with write access to this owner, or another `publish.repo`"
    elif status == 409:
        what, fix = f"the Hub refuses it as things stand (409): {said}", "look at the repo, then try again"
    elif status == 412:
        what, fix = "the branch moved while we were publishing; nothing was published", "publish again"
    elif status == 429 or status >= 500:
        wait = _asked_wait(error)
        later = f"try again in {wait:g} s, as the Hub asks" if wait else "try again later"
        return HubUnreachable(where, f"the Hub answered {status}: {said}", later, wait)
    elif status:
        what, fix = f"the Hub answered {status}: {said}", "try again later"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        what, fix = f"the disk of {cache_folder()} is full", "free some space, or set HF_HOME to a larger disk"
    elif isinstance(error, httpx2.HTTPError | ConnectionError | TimeoutError):
        what = f"cannot reach {endpoint()}: {one_line(error)}"
        return HubUnreachable(where, what, "check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what is cached")
    else:
        what, fix = one_line(error), f"check the space and the rights of {cache_folder()}"
    return HubError(where, what, fix)


def _asked_wait(error: Exception) -> float:
    """Seconds after which the Hub wants to be asked again, by RateLimit or Retry-After; 0: it does not say."""
    if not isinstance(error, errors.HfHubHTTPError):
        return 0.0
    limits, after = parse_ratelimit_headers(error.response.headers), error.response.headers.get("Retry-After", "")
    if limits and limits.remaining == 0:
        return float(limits.reset_in_seconds)
    return float(after) if after.strip().isdigit() else 0.0


def _answer(error: Exception) -> tuple[int, str]:
    """The status that the Hub answered with, 0 where it did not, and its words, else the client's."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code, (error.server_message or one_line(error))[:240]
    # the Xet client reports what it was refused as a connection that failed
    refused = REFUSED.search(str(error)) if isinstance(error, ConnectionError) else None
    return int(refused[1]) if refused else 0, one_line(error)
