"""The tokens of an answer with their log-probabilities, as servers that are asked for them send them along.

Knows OpenAI's shape of `logprobs`; no HTTP, no page. A server that sends something else has sent none.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Token:
    """A token of an answer. Its bytes may be a part of a character, and none where the next token completes it."""

    data: bytes
    logprob: float  # natural, at most 0


def read(choice: dict[str, Any]) -> tuple[Token, ...]:
    """The tokens of one choice of an event, or of a whole body."""
    logprobs = choice.get("logprobs")
    rows = logprobs.get("content") if isinstance(logprobs, dict) else None
    return tuple(_tokens(rows)) if isinstance(rows, list) else ()


def _tokens(rows: list[Any]) -> Iterator[Token]:
    for row in rows:
        logprob = row.get("logprob") if isinstance(row, dict) else None
        if isinstance(logprob, int | float) and not isinstance(logprob, bool) and not math.isnan(logprob):
            yield Token(_data(row), min(0.0, max(float(logprob), -9999.0)))


def _data(row: dict[str, Any]) -> bytes:
    """A token's bytes; those of its text where the server sends no bytes."""
    numbers = row.get("bytes")
    if isinstance(numbers, list) and all(isinstance(each, int) and 0 <= each < 256 for each in numbers):
        return bytes(numbers)
    text = row.get("token")
    return text.encode(errors="replace") if isinstance(text, str) else b""
