"""What a server's list of models says: names, and beside them what the reports of compressed models say.

Knows the rows of /v1/models; no HTTP. What a server says is data, never markup, and its numbers are checked.
"""

import math
from dataclasses import dataclass
from typing import Any

READY = "ready"  # the state of an engine that runs


@dataclass(frozen=True)
class Listed:
    """A model of a server's list. What the row does not say, or says as nothing that can be, is None."""

    name: str
    parent: str | None = None  # the model that it was made from
    state: str | None = None  # of its engine
    max_model_len: int | None = None  # tokens of prompt and answer together
    bytes: int | None = None  # of its safetensors
    disk_ratio: float | None = None  # bytes of the base over its own
    perplexity_ratio: float | None = None  # its own over that of the base
    mean_kl: float | None = None  # nats per token, from the base
    model_bits_per_weight: float | None = None
    perplexity: float | None = None
    p99_kl: float | None = None  # nats per token, 99th percentile
    top1_agreement: float | None = None  # share of positions, 0 to 1
    parameters: int | None = None


def read(body: Any) -> list[Listed]:
    """The models of an answer. Raises KeyError or TypeError where it is no list of models."""
    rows = body if isinstance(body, list) else body["data"] or []  # Together's; Ollama's without a model
    return [_listed(row) for row in rows]


def _listed(row: Any) -> Listed:
    say = row.get if isinstance(row, dict) else {}.get
    return Listed(
        str(row["id"]),
        parent=_text(say("parent")),
        state=_text(say("state")),
        max_model_len=_whole(say("max_model_len")),
        bytes=_whole(say("bytes")),
        disk_ratio=_number(say("disk_ratio")),
        perplexity_ratio=_number(say("perplexity_ratio")),
        mean_kl=_number(say("mean_kl")),
        model_bits_per_weight=_number(say("model_bits_per_weight")),
        perplexity=_number(say("perplexity")),
        p99_kl=_number(say("p99_kl")),
        top1_agreement=_number(say("top1_agreement")),
        parameters=_whole(say("parameters")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    """Sizes, ratios and divergences: finite, and none is negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1e18 and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number else None
