"""What in a folder's texts must not leave this machine: access tokens and private keys.

Knows texts. Knows no Hub; who publishes says which token is in use.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from hubplugin import report
from hubplugin.checkpoint.model_folder import PAPERS, WEIGHTS, allowed
from hubplugin.errors import HubError

# not in vocabularies and templates, which may hold such words for good reasons
WRITTEN = (*PAPERS, report.FILE_NAME, "manifest.yaml")
SECRETS = {
    "an access token of the Hub": re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
SHORTEST_TOKEN = 8  # a shorter one, as tests use, may be a word


def check(folder: Path, names: Iterable[str], token: str | None) -> None:
    """Raise HubError where a file that is to be published holds a secret, which is not shown."""
    for name in names:
        if not allowed(name, WEIGHTS) and (found := _secret(folder / name, name, token)):
            raise HubError(
                str(folder / name),
                f"holds {found}; nothing was published",
                "take it out of where it comes from (manifest, or the base's files), and have it revoked if it got out",
            )


def _secret(path: Path, name: str, token: str | None) -> str | None:
    content = path.read_bytes()
    if token and len(token) >= SHORTEST_TOKEN and token.encode() in content:
        return "the access token that is in use"
    patterns = SECRETS.items() if allowed(name, WRITTEN) else ()
    return next((what for what, pattern in patterns if pattern.search(content)), None)
