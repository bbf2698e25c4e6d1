"""Writes docs/bench-serving.md from the files in bench/results/serving, and from nothing else.

    python bench/serving_page.py

A cell is the median over the starts of a setting, and its ratio to the best other setting's at that number of streams.
"""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from page import table

from hubplugin import disk

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serving"
PAGE = HERE.parent / "docs" / "bench-serving.md"
OURS = "hubplugin serve"
BUSY = 0.05  # share of all cores
HEAD = """# Serving, beside stock vLLM

*Written by `python bench/serving_page.py` from the files in `bench/results/serving`; do not edit.
`make bench-serve FOLDERS="./model ./variant"` measures.*

Each setting is started anew for each round, in an order that turns from round to round; **ready** is from the start of
the command to the first answer. Then vLLM's own `bench serve` asks, one number of streams after another: prompts of
random token ids, answers of one length, greedy, no prefix cache, the same for all. Numbers are output tokens per second
and, after them, the mean seconds to the first token; medians over the starts. **Of the best** is hubplugin's tokens per
second as a share of the best stock setting's at that number of streams.
"""


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    for file in sorted(RESULTS.glob("*.json")):
        parts += _model(json.loads(file.read_text(encoding="utf-8")))
    disk.write_atomically(PAGE, "\n".join(parts).rstrip() + "\n")


def _model(record: dict[str, Any]) -> list[str]:
    starts: dict[str, list[dict[str, Any]]] = {}
    for start in record["starts"]:
        starts.setdefault(start["setting"], []).append(start)
    streams = sorted({each["streams"] for start in record["starts"] for each in start["answered"]})
    machine, load = record["machine"], record["load"]
    asked = f"{load['prompt']} + {load['answer']} tokens, {load['each']} requests per stream"
    features = ", ".join(machine["features"])
    return [
        f"## {record['model']}, {machine['processor']}\n",
        f"{record['bytes'] / 1e6:.0f} MB of weights, vLLM {record['vllm']}, {asked}. {record['date']}, "
        f"{machine['processor']}, {machine['cores']} cores "
        f"({features}), {machine['memory_gb']} GB. {_shared(record['starts'])}\n",
        table(
            " | ".join(["setting", "starts", "ready, s", *(f"{count} streams" for count in streams)]),
            [_row(setting, found, streams) for setting, found in starts.items()] + _best(starts, streams),
        ),
        "",
    ]


def _shared(starts: list[dict[str, Any]]) -> str:
    others = [each["others"] for start in starts for each in start["answered"]]
    busy = sum(share > BUSY for share in others)
    return f"Other processes used more than {BUSY:.0%} of the machine in {busy} of {len(others)} measurements."


def _of(found: list[dict[str, Any]], streams: int, key: str) -> float | None:
    values = [each[key] for start in found for each in start["answered"] if each["streams"] == streams]
    return median(values) if values else None


def _row(setting: str, found: list[dict[str, Any]], streams: list[int]) -> list[str]:
    cells = []
    for count in streams:
        speed, first = _of(found, count, "tokens_per_second"), _of(found, count, "first_token")
        cells.append("-" if speed is None or first is None else f"{speed:.1f}, {first:.2f}")
    ready = median(start["ready_seconds"] for start in found)
    return [f"**{setting}**" if setting == OURS else setting, str(len(found)), f"{ready:.0f}", *cells]


def _best(starts: dict[str, list[dict[str, Any]]], streams: list[int]) -> list[list[str]]:
    """Ours as a share of the best other setting's; nothing where either is missing."""
    if OURS not in starts or len(starts) < 2:
        return []

    def share(of: Callable[[list[dict[str, Any]]], float | None], best: Callable[[list[float]], float]) -> str:
        others = [value for name, found in starts.items() if name != OURS and (value := of(found)) is not None]
        ours = of(starts[OURS])
        return f"{ours / best(others):.2f}" if ours is not None and others else "-"

    ready = share(lambda found: median(start["ready_seconds"] for start in found), min)
    speeds = [share(lambda found, count=count: _of(found, count, "tokens_per_second"), max) for count in streams]
    return [["of the best", "", ready, *speeds]]


if __name__ == "__main__":
    main()
