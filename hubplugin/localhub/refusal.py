"""How the Hub says no: a status, a code that clients turn into a named exception, and one sentence.

It knows nothing about repos. Clients read `X-Error-Code`; over plain http a 401 or 404 without one means
nothing to them, so every refusal carries one.
"""

import re
from typing import Any

from fastapi import HTTPException


def refuse(status: int, code: str, message: str, headers: dict[str, str] | None = None, **more: str) -> HTTPException:
    """The exception to raise. `more` joins the JSON body beside `error`."""
    line = re.sub(r"[^ -~]", "?", " ".join(message.split()))[:500]
    body: dict[str, Any] = {"error": message, **more}
    return HTTPException(status, body, {"X-Error-Code": code, "X-Error-Message": line, **(headers or {})})


def missing_entry(path: str, commit: str) -> HTTPException:
    """404 for a path. It names the commit, so that clients may remember that the file is not there."""
    return refuse(404, "EntryNotFound", f'Entry "{path}" does not exist at {commit}', {"X-Repo-Commit": commit})


def missing_revision(revision: str) -> HTTPException:
    """404 for a branch, tag or commit."""
    return refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
