"""What `model:` names: a repo of the Hub, a folder, or a snapshot in the cache of the Hub's client.

Knows paths as text; no disk.
"""

import re
from pathlib import PurePath

COMMIT = re.compile("[0-9a-f]{40}")


def cached_snapshot(path: str | PurePath) -> tuple[str, str] | None:
    """Repo id and commit of .../models--owner--name/snapshots/<commit>; None for any other path.

    That is how huggingface_hub lays out its cache (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    parts = PurePath(path).parts[-3:]
    if len(parts) < 3 or parts[1] != "snapshots" or not COMMIT.fullmatch(parts[2]):
        return None
    kind, *names = parts[0].split("--")
    return ("/".join(names), parts[2]) if kind == "models" and all(names) and 1 <= len(names) <= 2 else None


def repo(model: str) -> str:
    """The base's Hub id without a revision, or its folder as the manifest writes it."""
    cached = cached_snapshot(model)
    return cached[0] if cached else model.split("@")[0]
