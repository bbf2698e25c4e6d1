"""What uploads share: small files in JSON, signatures with an expiry time, bodies written to files, objects of a repo.

This module knows no route and no protocol.
"""

import base64
import hashlib
import hmac
import time
from pathlib import Path
from typing import Any

from fastapi import Request

from hubplugin.localhub.contents import metadata, repos
from hubplugin.localhub.dependencies import Hub, limited_stream
from hubplugin.localhub.http_errors import http_error

MAX_FILE_BYTES = 200 * 2**30
SIGNATURE_SECONDS = 3600  # how long a signature is valid


def decode_file(path: str, value: dict[str, Any]) -> bytes:
    """The content of a small file. Raises 400 where it is not valid base64, or a repo card with invalid metadata."""
    try:
        if value.get("encoding") == "base64":
            content = base64.b64decode(value.get("content", ""), validate=True)
        else:
            content = str(value.get("content", "")).encode()
    except (ValueError, TypeError) as error:
        raise http_error(400, "BadRequest", f"The content of {path} cannot be decoded") from error
    if path == "README.md":
        _, errors = metadata.parse_card(content.decode("utf-8", "replace"))
        if errors:
            raise http_error(400, "BadMetadata", f"Invalid metadata in README.md: {'; '.join(errors)}")
    return content


def sign(hub: Hub, *claims: object) -> str:
    """A signature over claims, which only this hub can make."""
    return hmac.new(hub.store.secret, "\n".join(map(str, claims)).encode(), hashlib.sha256).hexdigest()


def is_valid(signature: str, expected: str, expires: int) -> bool:
    """Whether a client's signature is the expected one and has not expired."""
    return hmac.compare_digest(expected, signature.encode("ascii", "replace").decode()) and expires >= time.time()


async def save_body(request: Request, path: Path, max_bytes: int) -> tuple[str, int]:
    """Write a body to a file as it arrives; return its sha256 and its size. Raises 413."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        async for chunk in limited_stream(request, max_bytes):
            file.write(chunk)
            digest.update(chunk)
        return digest.hexdigest(), file.tell()


def add_object(hub: Hub, repo_id: int, path: Path, sha256: str, size: int) -> None:
    """Make a temporary file, whose hash the caller has checked, an object of a repo. Raises 404."""
    hub.store.add_file(path, sha256)
    with hub.store.write() as db:
        repos.add_object(db, repo_id, sha256, size)
