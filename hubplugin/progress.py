"""Progress on stderr, one line at a time; stdout is kept for results."""

import sys


def progress(line: str) -> None:
    """One line of talk on stderr; stdout is kept for results."""
    print(line, file=sys.stderr, flush=True)
