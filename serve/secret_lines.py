"""Secrets of a file, one per line: API keys, logins. No error shows one."""

from pathlib import Path

from hubplugin.errors import ServeError


def read(file: Path, what: str, fix: str) -> list[tuple[int, str]]:
    """The lines that are neither empty nor a comment, stripped, each with its number. `what` names one of them.

    Raises ServeError where the file cannot be read or has none.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ServeError(str(file), f"cannot be read as a file of {what}s", fix) from error
    stripped = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    if own := [(number, line) for number, line in stripped if line and not line.startswith("#")]:
        return own
    raise ServeError(str(file), f"holds no {what}", fix)
