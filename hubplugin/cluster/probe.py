"""What a node says of itself: versions, whether it sees the variants' folder, and the manifest's own files.

Travels to the nodes by value and imports nothing of ours, so that it answers also where hubplugin is missing.
"""

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PACKAGES = ("hubplugin", "torch")


def versions() -> dict[str, str]:
    """Of Python and the packages that decide the numbers; without what differs between builds for CPU and GPU."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def contents(path: str) -> list[tuple[str, int]] | None:
    """Names and sizes of the files of a folder, or of a file; None where there is nothing."""
    place = Path(path)
    if place.is_file():
        return [(place.name, place.stat().st_size)]
    if not place.is_dir():
        return None
    files = sorted(each for each in place.iterdir() if each.is_file() and not each.name.startswith("."))
    return [(each.name, each.stat().st_size) for each in files]


def look(marks: Sequence[str], files: Sequence[str]) -> dict[str, object]:
    """What this node sees: the texts of `marks` (None: no such file), whether their folders can be written, and what
    stands under `files`."""
    seen: dict[str, str | None] = {}
    for mark in marks:
        path = Path(mark)
        seen[mark] = path.read_text("utf-8") if path.is_file() else None
    return {
        "versions": versions(),
        "marks": seen,
        "writable": {mark: os.access(Path(mark).parent, os.W_OK) for mark in marks},
        "files": {path: contents(path) for path in files},
    }
