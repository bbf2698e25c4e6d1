"""The page of the serving benchmark: medians of quiet starts, and what was measured beside other work says so."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import serving_page


def start(setting: str, ready: float, *answered: tuple[int, float, float]) -> dict[str, Any]:
    """`answered`: streams, tokens per second, share of other processes."""
    each = [
        {"streams": streams, "tokens_per_second": speed, "first_token": 1.0, "others": others}
        for streams, speed, others in answered
    ]
    return {"setting": setting, "ready_seconds": ready, "answered": each}


def page(*starts: dict[str, Any]) -> list[str]:
    machine = {"processor": "CPU", "features": ["avx2"], "cores": 2, "memory_gb": 24}
    load = {"prompt": 1, "answer": 1, "each": 1}
    record = {"model": "M", "bytes": 1, "machine": machine, "load": load, "vllm": "0", "date": "x", "starts": starts}
    return [line for line in "\n".join(serving_page._model(record)).splitlines() if line.startswith("|")]


def test_a_cell_is_the_median_of_the_quiet_starts() -> None:
    found = page(
        start("hubplugin serve", 10, (1, 8.0, 0.0), (8, 30.0, 0.01)),
        start("hubplugin serve", 20, (1, 2.0, 0.5), (8, 50.0, 0.02)),
        start("vllm serve", 30, (1, 4.0, 0.0), (8, 50.0, 0.4)),
        start("slow", 60, (1, 3.0, 0.0), (8, 10.0, 0.0)),
    )
    assert found[2:] == [
        "| **hubplugin serve** | 2 | 15 | 8.0, 1.00 | 40.0, 1.00 |",
        "| vllm serve | 1 | 30 | 4.0, 1.00 | 50.0, 1.00* |",
        "| slow | 1 | 60 | 3.0, 1.00 | 10.0, 1.00 |",
        "| of the best |  | 0.50 | 2.00 | 0.80* |",
    ]


def test_ours_alone_is_compared_with_nothing() -> None:
    assert len(page(start("hubplugin serve", 10, (1, 8.0, 0.0)))) == 3
