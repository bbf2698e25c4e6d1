"""Whose a folder in the making is: what was begun from one base, one list of steps and one set of tokens stays apart.

Knows names of what it was begun with and their digests; nothing of what lies in the folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from hubplugin import disk
from hubplugin.errors import CompressError

FILE_NAME = "identity.json"


def claim(folder: Path, identity: Mapping[str, str], kept: str) -> None:
    """Open a folder inside one in the making, new or as an interrupted run left it, without files half written.

    `identity` says by name what it is begun with. `kept` says in words what lies there that would fit nothing else; an
    empty word lets anyone have the folder. Raises CompressError where it was begun with something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob("*.part"):
        unfinished.unlink()
    noted, now = folder / FILE_NAME, dict(identity)
    before = json.loads(noted.read_text("utf-8")) if noted.is_file() else {}
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed and kept:
        raise CompressError(
            str(folder.parent),
            f"was begun with another {', '.join(changed)}, and {kept}",
            "run what it was begun with, or remove that folder to start over",
        )
    if changed:
        disk.put(noted, json.dumps(now, indent=1))
