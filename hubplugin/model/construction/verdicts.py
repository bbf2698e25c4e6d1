"""Which models transformers has been seen to build: the check of `buildable`, once for a config.json.

The check imports torch and transformers' classes, ten seconds of a plan that takes one otherwise. What passed it is
noted, by everything that it depends on; what was refused is checked again, and says why. Knows no torch.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from hubplugin import interrupt
from hubplugin.model.architectures.families import Family

ROOM = Path(__file__).parents[1]  # all that decides how a model is built here


def check(config: Mapping[str, Any], family: Family, where: str, folder: Path) -> None:
    """As `buildable.check`, unless `folder` says that it passed. A folder that cannot be written to is no error.

    Raises PlanError as it does.
    """
    passed = folder / _key(config)
    if passed.exists():
        return
    with interrupt.held():
        from hubplugin.model.construction import buildable

    buildable.check(config, family, where)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        passed.touch()


def _key(config: Mapping[str, Any]) -> str:
    """Of the config.json, from which the family follows, and of the code that builds it and checks."""
    return hashlib.sha256(json.dumps([dict(config), _code()]).encode()).hexdigest()


@cache
def _code() -> list[str]:
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers")]
    sources = sorted(ROOM.rglob("*.py"))
    return [*versions, *(hashlib.sha256(source.read_bytes()).hexdigest() for source in sources)]
