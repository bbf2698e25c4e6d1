"""A variant's codes by vLLM's own CPU kernel and as dense weights made of them, beside its base.

    python bench/models.py 1b bench/.work        # or any other base; its variant by `hubplugin run`
    python bench/dense_codes.py BASE VARIANT [--streams 1 8 32] [--rounds 1]

Engines are started one after another as `hubplugin serve` starts them, and asked for random prompts as `hubplugin run`
asks. Prints a Markdown table: output tokens per second by the number of streams, seconds until an engine answers, and
the most memory that its processes had; medians over rounds.
"""

import argparse
import statistics
from pathlib import Path

from serve import codes, throughput, vllm_settings

PROMPT, ANSWER, FEWEST = 128, 64, 4  # tokens; requests at a concurrency
ROWS = (
    ("base", False, ()),
    ("codes, vLLM's kernel", True, codes.KEPT),
    ("codes, made dense weights", True, codes.DENSE),
)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("variant", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    loads = [throughput.Load(streams, max(FEWEST, streams), PROMPT, ANSWER) for streams in asked.streams]
    vocabulary = (vllm_settings.read_config(asked.base) or {})["vocab_size"]
    found: dict[str, list[list[float]]] = {name: [] for name, *_ in ROWS}
    for number in range(asked.rounds):
        for name, coded, options in ROWS:
            folder = asked.variant if coded else asked.base
            turn = throughput.turn(folder, name, loads, vocabulary, number, print, options)
            rates = [answered.tokens_per_second for answered in turn.answered]
            found[name].append([*rates, turn.ready_seconds, turn.peak_bytes / 1e9])
    heads = [*(f"{streams} at once" for streams in asked.streams), "ready, s", "memory, GB"]
    print(f"| | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")
    for name, rounds in found.items():
        print(f"| {name} | {' | '.join(f'{statistics.median(column):.3g}' for column in zip(*rounds, strict=True))} |")


if __name__ == "__main__":
    main()
