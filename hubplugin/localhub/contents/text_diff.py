"""What a pull request changes, as git would print it. Knows trees and blobs, and no repo."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from hubplugin.localhub.contents import git
from hubplugin.localhub.contents.git import Tree, TreeEntry

MAX_TEXT_BYTES = 2**18  # the lines of a larger file are not compared


def text_diff(blobs: Path, before: Tree, after: Tree, paths: list[str]) -> str:
    """The changed lines of every path; of an LFS file those of its pointer, as in git."""
    return "".join(line for path in paths for line in _file_diff(blobs, path, before.get(path), after.get(path)))


def _file_diff(blobs: Path, path: str, before: TreeEntry | None, after: TreeEntry | None) -> Iterator[str]:
    yield f"diff --git a/{path} b/{path}\n"
    if before is None or after is None:
        yield f"{'new' if before is None else 'deleted'} file mode 100644\n"
    old_lines, new_lines = _lines(blobs, before), _lines(blobs, after)
    if old_lines is None or new_lines is None:
        yield f"Binary files a/{path} and b/{path} differ\n"
        return
    names = (f"a/{path}" if before else "/dev/null", f"b/{path}" if after else "/dev/null")
    for line in difflib.unified_diff(old_lines, new_lines, *names):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(blobs: Path, entry: TreeEntry | None) -> list[str] | None:
    """The lines of a file; None where it is large or no text."""
    if entry is None:
        return []
    if entry.lfs:
        return git.lfs_pointer(entry.sha256, entry.size).decode().splitlines(keepends=True)
    if entry.size > MAX_TEXT_BYTES:
        return None
    try:
        text = (blobs / entry.sha256).read_bytes().decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else re.findall(r"[^\n]*\n|[^\n]+", text)
