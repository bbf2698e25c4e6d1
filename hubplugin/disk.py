"""Files written atomically, and their digests. Knows names and bytes. Knows no format."""

import hashlib
import os
from pathlib import Path


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def digest(text: str) -> str:
    """Hex sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def changed_files(folder: Path, digests: dict[str, str]) -> list[str]:
    """The files that are missing from a folder or no longer have these sha256 digests."""
    return [
        name for name, wanted in digests.items() if not (folder / name).is_file() or sha256(folder / name) != wanted
    ]


def write_atomically(path: Path, text: str) -> None:
    """Write a text; under its name a file is complete or absent. Until then it is called *.part."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
