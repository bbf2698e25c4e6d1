"""The benchmark of gateways: that its servers answer alike, and what its page says. Nothing is timed."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import gateways  # noqa: E402
import gateways_page  # noqa: E402


def test_the_engine_the_endpoint_and_the_plain_proxy_stream_the_same_tokens() -> None:
    names = [gateways.ALONE, gateways.OURS, gateways.PLAIN]
    with gateways._all(names) as servers:
        for name, server in servers.items():
            load = gateways.Load("short", 0.001, 25, {})
            firsts, _, tokens = asyncio.run(gateways._asked(server.url, load, 3, 2))
            assert (len(firsts), tokens) == (6, 6 * 25) and min(firsts) > 0, name


def measured(gateway: str, number: int, first: float, speed: float, others: float = 0.0) -> dict[str, Any]:
    """One measurement."""
    own = {"first_token": first, "first_token_p90": first, "tokens_per_second": speed, "others": others}
    return {"round": number, "load": "paced", "streams": 32, "gateway": gateway, **own}


def test_the_page_compares_within_a_round() -> None:
    record = {
        "machine": {"processor": "a CPU", "cores": 2, "memory_gb": 8},
        "python": "3.11",
        "packages": {"aiohttp": "3"},
        "date": "2026-01-02",
        "loads": [{"name": "paced", "tokens": 64, "requests": {"32": 4}}],
        "measured": [
            measured(gateways.ALONE, 0, 0.001, 100),
            measured(gateways.OURS, 0, 0.002, 99),
            measured(gateways.ALONE, 1, 0.005, 50, others=0.3),
            measured(gateways.OURS, 1, 0.007, 49.5),
            measured(gateways.ALONE, 2, 0.001, 100),
            measured(gateways.OURS, 2, 0.004, 90),
        ],
    }
    text = gateways_page.render(record)
    assert "| **hubplugin serve** | 3 | 4.00 | 2.00 (1.00-3.00) | 90.0 | 0.990 (0.900-0.990) |" in text
    assert "| the engine alone | 3 | 1.00 |  | 100.0 |  |" in text
    assert "more than 5% of the machine in 1 of 6" in text and "4 answers of 64 tokens per stream" in text


def test_the_page_in_docs_is_what_the_results_say() -> None:
    record = json.loads((gateways_page.RESULTS / "loopback.json").read_text(encoding="utf-8"))
    assert gateways_page.PAGE.read_text(encoding="utf-8") == gateways_page.render(record)
