"""Writes docs/bench-serving.md from the files in bench/results/serving, and from nothing else.

    python bench/serving_page.py

A cell is the median over the starts of a setting in which nothing else ran, of all where none was quiet; the last row
is ours over the best other setting's at that number of streams.
"""

import json
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
and, after them, the mean seconds to the first token; medians over the starts, without measurements in which other
processes took more than 5% of the machine (where there is no other, it is shown with a *). **Of the best** is
hubplugin's tokens per second as a share of the best stock setting's at that number of streams. Since 2026-11-30
hubplugin makes dense weights of 4-bit codes on such CPUs ([serving.md](serving.md)): both Int4 tables of the AMD EPYC
were measured so; the Intel one is of before, when it computed with codes, as `-- --load-format auto` does.
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
    values = [each[key] for each in _counted(found, streams)]
    return median(values) if values else None


def _counted(found: list[dict[str, Any]], streams: int) -> list[dict[str, Any]]:
    """The quiet measurements at that number of streams; all where none was."""
    every = [each for start in found for each in start["answered"] if each["streams"] == streams]
    return [each for each in every if each["others"] <= BUSY] or every


def _mark(found: list[dict[str, Any]], streams: int) -> str:
    return "*" * any(each["others"] > BUSY for each in _counted(found, streams))


def _row(setting: str, found: list[dict[str, Any]], streams: list[int]) -> list[str]:
    cells = []
    for count in streams:
        speed, first = _of(found, count, "tokens_per_second"), _of(found, count, "first_token")
        cells.append("-" if speed is None or first is None else f"{speed:.1f}, {first:.2f}{_mark(found, count)}")
    ready = median(start["ready_seconds"] for start in found)
    return [f"**{setting}**" if setting == OURS else setting, str(len(found)), f"{ready:.0f}", *cells]


def _best(starts: dict[str, list[dict[str, Any]]], streams: list[int]) -> list[list[str]]:
    """Ours as a share of the best other setting's; nothing where either is missing."""
    if OURS not in starts or len(starts) < 2:
        return []

    ready = {name: median(start["ready_seconds"] for start in found) for name, found in starts.items()}
    cells = [f"{ready[OURS] / min(seconds for name, seconds in ready.items() if name != OURS):.2f}"]
    for count in streams:
        speeds = {name: speed for name in starts if (speed := _of(starts[name], count, "tokens_per_second"))}
        ours, best = speeds.pop(OURS, None), max(speeds, key=speeds.__getitem__, default=None)
        if ours is None or best is None:
            cells.append("-")
            continue
        mark = _mark(starts[OURS], count) or _mark(starts[best], count)
        cells.append(f"{ours / speeds[best]:.2f}{mark}")
    return [["of the best", "", *cells]]


if __name__ == "__main__":
    main()
