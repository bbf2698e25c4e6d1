"""The section of docs/pruning.md on serving speed, as a pure function of what pruning_speed.py measured."""

import statistics
from typing import Any

from page import spread

MEASURES = (("ttft", 1e3, 1), ("tpot", 1e3, 2), ("tokens_per_second", 1, 1))
NOT_YET = """## Serving speed

Not measured yet: `python bench/pruning_speed.py` does it, on a machine with nothing else to do.
"""
HEAD = """## Serving speed

`python bench/pruning_speed.py`: a dense model with random weights and variants of it that `hubplugin run` pruned, each
served by vLLM as `hubplugin serve` starts it, one at a time, taking turns. Random prompts, no prefix caching, greedy,
end of text ignored. **TTFT** and **TPOT** (time per output token after the first) are means over requests from vLLM's
own histograms, **tokens/s** are output tokens over the time from the first request to the last answer; medians over
rounds. **Ratio** is to dense in the same round, as a machine is not equally fast all the time: the median over rounds,
smallest and largest in brackets; above 1, the variant is faster.
"""


def section(found: list[dict[str, Any]]) -> list[str]:
    """A table per model."""
    found = [each for each in found if each["runs"]]
    if not found:
        return [NOT_YET]
    return [HEAD, *(part for each in found for part in _model(each))]


def _model(result: dict[str, Any]) -> list[str]:
    said, machine, runs = result["protocol"], result["machine"], result["runs"]
    rounds = len({run["round"] for run in runs})
    lines = [
        f"### {result['model']}\n",
        f"{machine['processor']}, {machine['cores']} cores; vLLM {result['vllm']}; prompts of {said['prompt']} tokens, "
        f"{said['output']} output tokens, {rounds} rounds.\n",
        "| concurrency | variant | weights in linears | TTFT, ms | ratio | TPOT, ms | ratio | tokens/s | ratio |",
        "|---:|---|" + "---:|" * 7,
    ]
    for concurrency in sorted({run["concurrency"] for run in runs}):
        dense = [run for run in runs if (run["variant"], run["concurrency"]) == ("dense", concurrency)]
        for variant, weights in result["variants"].items():
            rows = [run for run in runs if (run["variant"], run["concurrency"]) == (variant, concurrency)]
            if rows and dense:
                cells = [str(concurrency), variant, f"{weights:,}", *_cells(rows, dense)]
                lines.append(f"| {' | '.join(cells)} |")
    busy = max(run["others_share"] for run in runs)
    return ["\n".join(lines) + "\n", f"Other processes used at most {busy:.0%} of the machine in any round.\n"]


def _cells(rows: list[dict[str, Any]], dense: list[dict[str, Any]]) -> list[str]:
    cells = []
    for key, unit, digits in MEASURES:
        base = {run["round"]: run[key] for run in dense}
        pairs = [(run[key], base[run["round"]]) for run in rows if run["round"] in base]
        better = [own / its if key == "tokens_per_second" else its / own for own, its in pairs]
        value = statistics.median(run[key] for run in rows)
        cells += [f"{value * unit:.{digits}f}", spread(better, 2) if rows != dense else "1"]
    return cells
