"""Error responses in the Hub's format: a status, an error code in the headers, and a message.

Clients turn the header X-Error-Code into an exception such as RepositoryNotFoundError. Over plain HTTP they cannot
interpret a 401 or 404 without it, so every error has one. This module knows nothing about repos or users.
"""

import re
from typing import Any

from fastapi import HTTPException


def http_error(
    status: int, code: str, message: str, headers: dict[str, str] | None = None, **extra: Any
) -> HTTPException:
    """The exception to raise. `extra` is added to the JSON body, beside `error`."""
    header_message = re.sub(r"[^ -~]", "?", " ".join(message.split()))[:500]
    body: dict[str, Any] = {"error": message, **extra}
    return HTTPException(status, body, {"X-Error-Code": code, "X-Error-Message": header_message, **(headers or {})})


def repo_not_found(authenticated: bool) -> HTTPException:
    """404 for a repo, or 401 where a token might help. The same for a missing repo and one that is private."""
    if authenticated:
        return http_error(404, "RepoNotFound", "Repository not found")
    return http_error(401, "RepoNotFound", "Invalid username or password.")


def entry_not_found(path: str, commit_oid: str) -> HTTPException:
    """404 for a path. With X-Repo-Commit, clients can cache that the file does not exist in this commit."""
    message = f'Entry "{path}" does not exist at {commit_oid}'
    return http_error(404, "EntryNotFound", message, {"X-Repo-Commit": commit_oid})


def revision_not_found(revision: str) -> HTTPException:
    """404 for a branch, tag or commit."""
    return http_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def not_supported(what: str) -> HTTPException:
    """501 for what the real Hub has and this one has not."""
    return http_error(501, "NotSupported", f"This hub runs on one machine and has no {what}.")
