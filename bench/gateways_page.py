"""Writes docs/bench-gateways.md from bench/results/gateways, and from nothing else.

python bench/gateways_page.py
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

from page import table

from hubplugin import disk

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gateways"
PAGE = HERE.parent / "docs" / "bench-gateways.md"
ALONE, OURS = "the engine alone", "hubplugin serve"
BUSY = 0.05  # share of all cores
HEAD = """# What a gateway adds

*Written by `python bench/gateways_page.py` from the file in `bench/results/gateways`; do not edit.
`python bench/environments.py litellm && python bench/gateways.py` measures.*

A stand-in for vLLM streams chunks of a chat completion on loopback, one token each 20 ms or as fast as they can be
written. It is asked directly and through each gateway, in an order that turns from round to round; client, engine and
gateway are a process each and share the machine. hubplugin's endpoint asks for a key, counts and logs every request, as
LiteLLM does by default; the plain proxy is 30 lines of starlette and httpx that pass bytes on. **First token** is the
median over a round's requests, **added** what is more than the engine alone took in the same round, **of alone** the
tokens per second as a share of the engine's alone. All are medians over the rounds, with the least and the greatest
behind **added** and **of alone**.
"""


def main() -> None:
    """Write the page."""
    disk.write_atomically(PAGE, render(json.loads((RESULTS / "loopback.json").read_text(encoding="utf-8"))))


def render(record: dict[str, Any]) -> str:
    """The page of one result file."""
    machine, found = record["machine"], record["measured"]
    packages = ", ".join(f"{name} {version}" for name, version in record["packages"].items())
    busy = sum(each["others"] > BUSY for each in found)
    parts = [
        HEAD,
        f"{record['date']}, {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, Python "
        f"{record['python']}, {packages}. Other processes used more than {BUSY:.0%} of the machine in {busy} of "
        f"{len(found)} measurements.\n",
    ]
    for load in record["loads"]:
        for streams in sorted({each["streams"] for each in found}):
            rows = [each for each in found if (each["load"], each["streams"]) == (load["name"], streams)]
            if rows:
                requests = load["requests"].get(str(streams), 4)
                parts += [_title(load, streams, requests), _table(rows)]
    return "\n".join(parts).rstrip() + "\n"


def _title(load: dict[str, Any], streams: int, requests: int) -> str:
    noun = "stream" if streams == 1 else "streams"
    return f"## {load['name']}, {streams} {noun}\n\n{requests} answers of {load['tokens']} tokens per stream.\n"


def _table(rows: list[dict[str, Any]]) -> str:
    alone = {each["round"]: each for each in rows if each["gateway"] == ALONE}
    lines = []
    for name in dict.fromkeys(each["gateway"] for each in sorted(rows, key=lambda each: each["round"])):
        own = [each for each in rows if each["gateway"] == name]
        added = [1e3 * (each["first_token"] - alone[each["round"]]["first_token"]) for each in own]
        shares = [each["tokens_per_second"] / alone[each["round"]]["tokens_per_second"] for each in own]
        first = f"{1e3 * median(each['first_token'] for each in own):.2f}"
        speed = f"{median(each['tokens_per_second'] for each in own):.1f}"
        compared = ["", ""] if name == ALONE else [_spread(added, 2), _spread(shares, 3)]
        lines.append([f"**{name}**" if name == OURS else name, str(len(own)), first, compared[0], speed, compared[1]])
    return table("gateway | rounds | first token, ms | added, ms | tokens/s | of alone", lines)


def _spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
