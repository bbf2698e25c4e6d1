"""The tokens of an answer with their log-probabilities, as servers that are asked for them send them along.

Knows OpenAI's shape of `logprobs`; no HTTP, no page. A server that sends something else has sent none.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

ID = "token_id:"  # how vLLM writes a token that it is to name by its number


@dataclass(frozen=True)
class Token:
    """A token of an answer. Its bytes may be a part of a character, and none where the next token completes it."""

    data: bytes
    logprob: float  # natural, at most 0
    key: str = ""  # tells it from all others of its vocabulary: `ID` and its number where the server says that
    likeliest: Mapping[str, float] = field(default_factory=dict)  # log-probabilities at its place, by key, its own too

    @property
    def number(self) -> int | None:
        """In its vocabulary, where the server says it."""
        number = self.key.removeprefix(ID) if self.key.startswith(ID) else ""
        return int(number) if number.isascii() and number.isdecimal() else None


def read(choice: dict[str, Any]) -> tuple[Token, ...]:
    """The tokens of one choice of an event, or of a whole body."""
    logprobs = choice.get("logprobs")
    rows = logprobs.get("content") if isinstance(logprobs, dict) else None
    return tuple(_tokens(rows)) if isinstance(rows, list) else ()


def bounded(logprob: Any) -> float | None:
    """A log-probability as a server sends it; None where it is none."""
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or math.isnan(logprob):
        return None
    return min(0.0, max(float(logprob), -9999.0))


def _tokens(rows: list[Any]) -> Iterator[Token]:
    for row in rows:
        logprob = bounded(row.get("logprob")) if isinstance(row, dict) else None
        if logprob is not None:
            key, others = _key(row), row.get("top_logprobs")
            yield Token(_data(row), logprob, key, _likeliest(others, key, logprob) if others else {})


def _likeliest(rows: Any, key: str, logprob: float) -> dict[str, float]:
    """The likeliest tokens and the one that was chosen. Where two have the same key, neither can be told."""
    named = [(_key(row), bounded(row.get("logprob"))) for row in rows if isinstance(row, dict)] if rows else []
    counts = Counter(name for name, _ in named)
    found = {name: value for name, value in named if name and value is not None and counts[name] == 1}
    return found | ({key: logprob} if key and counts[key] < 2 else {})


def _key(row: dict[str, Any]) -> str:
    """By number, by bytes or by text; nothing for a part of a character that could be any."""
    text, number = row.get("token"), row.get("id")
    if isinstance(text, str) and text.startswith(ID):
        return text
    if isinstance(number, int) and not isinstance(number, bool):  # llama.cpp's
        return f"{ID}{number}"
    data = _data(row)
    return f"bytes:{data.hex()}" if data and "\ufffd".encode() not in data else ""


def _data(row: dict[str, Any]) -> bytes:
    """A token's bytes; those of its text where the server sends no bytes."""
    numbers = row.get("bytes")
    if isinstance(numbers, list) and all(isinstance(each, int) and 0 <= each < 256 for each in numbers):
        return bytes(numbers)
    text = row.get("token")
    return text.encode(errors="replace") if isinstance(text, str) else b""
