"""Which names and paths the hub accepts: repo ids, branches and tags, paths of files in a repo.

Every check returns its argument, or raises 422. This module knows no database.
"""

import re
from typing import Any

from hubplugin.localhub.http_errors import http_error

MAX_PATH_BYTES = 1024
RESERVED_NAMESPACES = ("api", "models", "datasets", "spaces", "lfs", "xet")  # first path segments of other URLs


def check_path(path: Any) -> str:
    """A file path that is safe to create on every client's disk. Raises 422."""
    valid = isinstance(path, str) and 0 < len(path.encode("utf-8", "surrogatepass")) <= MAX_PATH_BYTES
    valid = valid and not re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]", path)
    if not valid or any(part in ("", ".", "..") or part.lower() == ".git" for part in path.split("/")):
        raise http_error(422, "InvalidPath", f"Invalid path: {path!r}")
    return path


def check_repo_id(repo_id: Any) -> str:
    """A repo id of the form namespace/name. Raises 422."""
    valid = (
        isinstance(repo_id, str)
        and re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", repo_id, re.ASCII)
        and not re.search(r"--|\.\.", repo_id)
        and repo_id.split("/")[0].lower() not in RESERVED_NAMESPACES
        and not any(part.endswith((".git", "-", ".")) for part in repo_id.split("/"))
    )
    if not valid:
        raise http_error(422, "InvalidRepoName", f"Invalid repo name: {repo_id!r}")
    return repo_id


def check_ref_name(name: Any) -> str:
    """A branch or tag name that git accepts and that does not look like a full commit hash. Raises 422."""
    valid = (
        isinstance(name, str)
        and re.fullmatch(r"[\w][\w./+-]{0,199}", name, re.ASCII)
        and not re.search(r"\.\.|//|/\.|\.lock(/|$)|[./]$|^refs/|^HEAD$|^[0-9a-f]{40}$", name)
    )
    if not valid:
        raise http_error(422, "InvalidRefName", f"Invalid reference name: {name!r}")
    return name
