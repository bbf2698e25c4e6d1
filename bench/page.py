"""Writes docs/bench.md from the files in bench/results, and from nothing else.

    python bench/page.py

Medians over rounds with the smallest and largest beside them; ratios are of medians, and of seeds pair by pair.
Standard library only; it measures nothing.
"""

import json
import os
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cells import ENGINES, LAYERS, RESULTS, TRAINED
from page_text import HEAD, LINEAR, NAMES, NOTES, OURS, SHAPES

PAGE = Path(__file__).parents[1] / "docs" / "bench.md"


def main() -> None:
    """Write the page."""
    part = PAGE.with_name(f".{PAGE.name}.part")
    part.write_text(render(results()), encoding="utf-8")
    os.replace(part, PAGE)
    print(PAGE)


def results() -> list[dict[str, Any]]:
    """Every cell that has a file."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    return [each for each in found if "cell" in each]


def render(found: list[dict[str, Any]]) -> str:
    """The page as a pure function of the results."""
    parts = [HEAD, *machines(found), *speed(found), *curves(found), *quality(found), *settings(found), NOTES]
    return "\n".join(parts)


def ran(cell: dict[str, Any], engine: str) -> list[dict[str, Any]]:
    """The finished runs of an engine."""
    return [run for run in cell["runs"] if run["engine"] == engine and "failed" not in run]


def engines(cells: Iterable[dict[str, Any]]) -> list[str]:
    """Those with any run, in the order of the benchmark."""
    met = {run["engine"] for cell in cells for run in cell["runs"]}
    return [engine for engine in ENGINES if engine in met]


def spread(values: list[float], digits: int) -> str:
    """The median, with the extremes where there are several."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(head: str, rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    columns = head.count("|")
    lines = [f"| {head} |", "|---|" + "---:|" * columns, *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def label(cell: dict[str, Any]) -> str:
    """Tokens, bits and groups in words."""
    setting = cell["cell"]
    return f"{setting['tokens']:,} tokens, {setting['bits']} bits, groups of {setting['group_size']}"


def machines(found: list[dict[str, Any]]) -> list[str]:
    """Every machine that results come from."""
    lines = {
        f"{each['processor']}, {each['cores']} cores ({', '.join(each['features'])}), {each['memory_gb']} GB, "
        f"{each['system']}" + (f", OMP_WAIT_POLICY={each['omp_wait_policy']}" if each["omp_wait_policy"] else "")
        for each in (cell["machine"] for cell in found)
    }
    days = sorted(run["created"][:10] for cell in found for run in cell["runs"])
    if not days:
        return ["No results yet.\n"]
    runs = [run for cell in found for run in cell["runs"] if "failed" not in run]
    shared = sum(run["others_share"] > BUSY for run in runs)
    note = (
        f"**{shared} of {len(runs)} runs had to share the machine** (other processes used more than {BUSY:.0%} of it): "
        "read their seconds as upper bounds, and their ratios with care.\n"
    )
    alone = f"In none of the {len(runs)} runs did other processes use more than {BUSY:.0%} of the machine.\n"
    return [f"Measured {days[0]} to {days[-1]} on: {'; '.join(sorted(lines))}.\n", note if shared else alone]


def speed(found: list[dict[str, Any]]) -> list[str]:
    """One table per model: seconds, CPU seconds, memory, ratios."""
    parts = ["## Speed and memory\n"]
    for model, title in SHAPES.items():
        cells = [cell for cell in found if cell["cell"]["model"] == model and cell["cell"]["seed"] == 0]
        if not cells:
            continue
        parts.append(f"### {title}\n")
        for cell in sorted(cells, key=lambda cell: (-cell["cell"]["group_size"], cell["cell"]["tokens"])):
            head = "engine | runs | wall, s | ratio | process, s | ratio | CPU, s | ratio | peak, MB | ratio | file, MB"
            parts += [f"{label(cell)}:\n", table(head, [_cost(cell, engine) for engine in engines([cell])])]
            parts += _verdict(cell)
    return parts


COSTS: tuple[tuple[str, float, int], ...] = (
    ("wall", 1, 1),
    ("process_wall", 1, 1),
    ("cpu", 1, 1),
    ("peak_bytes", 1e6, 0),
)


def _cost(cell: dict[str, Any], engine: str) -> list[str]:
    runs, ours = ran(cell, engine), ran(cell, "ours")
    failed = [run["failed"] for run in cell["runs"] if run["engine"] == engine and "failed" in run]
    if not runs:
        return [NAMES[engine], "0", f"failed: {failed[-1]}", *[""] * 8]
    cells = [NAMES[engine], str(len(runs)) + (f", {len(failed)} failed" if failed else "")]
    for key, unit, digits in COSTS:
        values = [run[key] / unit for run in runs]
        cells += [spread(values, digits), _ratio(values, [run[key] / unit for run in ours])]
    return [*cells, f"{runs[0]['safetensors_bytes'] / 1e6:.1f}"]


def _ratio(values: list[float], ours: list[float]) -> str:
    return f"{statistics.median(values) / statistics.median(ours):.2f}" if ours else "-"


def _verdict(cell: dict[str, Any]) -> list[str]:
    """Ours against the faster rival, in one line."""
    rivals = {engine: [run["wall"] for run in ran(cell, engine)] for engine in engines([cell]) if engine not in OURS}
    rivals = {engine: walls for engine, walls in rivals.items() if walls}
    own = {engine: [run["wall"] for run in ran(cell, engine)] for engine in OURS}
    own = {engine: walls for engine, walls in own.items() if walls}
    if not rivals or not own:
        return []
    fastest = min(rivals, key=lambda engine: statistics.median(rivals[engine]))
    least = statistics.median(rivals[fastest])
    shares = [
        f"{NAMES[engine]} takes {statistics.median(walls) / least:.2f} of its time" for engine, walls in own.items()
    ]
    return [f"Fastest rival: {NAMES[fastest]}; {', '.join(shares)}.\n"]


def curves(found: list[dict[str, Any]]) -> list[str]:
    """Wall seconds over tokens and over layers, with a straight line through them."""
    parts = []
    for model in SHAPES:
        cells = [cell for cell in found if _plain(cell) and cell["cell"]["model"] == model]
        parts += _curve(f"{model}, over calibration tokens", cells, lambda cell: cell["cell"]["tokens"], "tokens")
    grown = [
        cell for cell in found if _plain(cell) and cell["cell"]["model"] in LAYERS and cell["cell"]["tokens"] == 8192
    ]
    parts += _curve("The 75m shape with more and fewer layers, 8,192 tokens", grown, _layers, "layers")
    return ["## Is the cost linear?\n", LINEAR, *parts] if parts else []


def _plain(cell: dict[str, Any]) -> bool:
    setting = cell["cell"]
    return (setting["bits"], setting["group_size"], setting["seed"]) == (4, 128, 0) and setting["data"] != "text"


def _layers(cell: dict[str, Any]) -> int:
    model = cell["cell"]["model"]
    return int(model.split("-")[1]) if "-" in model else 12


def _curve(title: str, cells: list[dict[str, Any]], axis: Callable[[dict[str, Any]], int], unit: str) -> list[str]:
    points = sorted({axis(cell) for cell in cells})
    if len(points) < 2:
        return []
    rows = []
    for engine in engines(cells):
        walls = {axis(cell): [run["wall"] for run in ran(cell, engine)] for cell in cells}
        known = [(x, statistics.median(walls[x])) for x in points if walls.get(x)]
        if len(known) < 2:
            continue
        values = [f"{statistics.median(walls[x]):.1f}" if walls.get(x) else "-" for x in points]
        rows.append([NAMES[engine], *values, _line(known, unit)])
    heads = " | ".join(f"{x:,}" for x in points)
    return [f"### {title}\n", table(f"engine | {heads} | fit", rows)] if rows else []


def _line(points: list[tuple[int, float]], unit: str) -> str:
    slope, start = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    scale, per = (1000, f"1,000 {unit}") if unit == "tokens" else (1, unit[:-1])
    fit = f"{start:.1f} s + {slope * scale:.3f} s per {per}"
    if len(points) < 3:
        return fit
    return f"{fit}, R² {statistics.correlation(*zip(*points, strict=True)) ** 2:.4f}"


def quality(found: list[dict[str, Any]]) -> list[str]:
    """Perplexity and KL over seeds, per data, bits and groups; for models whose quality means something."""
    parts = [part for model in TRAINED for part in _quality_of(model, found)]
    return ["## Quality\n", *parts] if parts else []


def _quality_of(model: str, found: list[dict[str, Any]]) -> list[str]:
    parts = []
    judged = [cell for cell in found if cell["cell"]["model"] == model and "evaluation" in cell]
    settings = sorted({_setting(cell) for cell in judged}, key=lambda row: (row[0], row[1], -row[2], row[3]))
    for setting in settings:
        cells = [cell for cell in judged if _setting(cell) == setting]
        base, held = cells[0]["evaluation"]["base"], cells[0]["evaluation"]["held_out"]
        seeds = ", ".join(str(cell["cell"]["seed"]) for cell in sorted(cells, key=lambda cell: cell["cell"]["seed"]))
        parts.append(f"### {model}, {label(cells[0])}\n")
        parts.append(
            f"Calibrated on {cells[0]['calibration']['source']}, seeds {seeds}. Measured on {held['source']}, "
            f"{held['sequences']} x {held['tokens_per_sequence']} tokens, where the base has a perplexity of "
            f"{base['perplexity']:.3f} ± {base['perplexity_stderr']:.3f}.\n"
        )
        head = "engine | seeds | perplexity | mean KL | hubplugin / it, same seed | p99 KL | top-1 same"
        parts.append(table(head, [_scores(cells, engine) for engine in engines(cells)]))
    return parts


def _setting(cell: dict[str, Any]) -> tuple[str, int, int, int]:
    setting = cell["cell"]
    return setting["data"], setting["bits"], setting["group_size"], setting["tokens"]


def _score(cell: dict[str, Any], engine: str) -> dict[str, Any] | None:
    runs = [run["quality"] for run in ran(cell, engine) if "failed" not in run.get("quality", {"failed": ""})]
    return runs[0] if runs else None


def _scores(cells: list[dict[str, Any]], engine: str) -> list[str]:
    rows = [score for cell in cells if (score := _score(cell, engine))]
    if not rows:
        return [NAMES[engine], "0", *["-"] * 5]
    pairs = [(_score(cell, "ours"), _score(cell, engine)) for cell in cells]
    ratios = [ours["mean_kl"] / its["mean_kl"] for ours, its in pairs if ours and its]
    return [
        NAMES[engine],
        str(len(rows)),
        spread([row["perplexity"] for row in rows], 3),
        spread([row["mean_kl"] for row in rows], 4),
        spread(ratios, 2) if ratios and engine != "ours" else "-",
        spread([row["p99_kl"] for row in rows], 4),
        f"{statistics.median(row['top1_agreement'] for row in rows):.1%}",
    ]


def settings(found: list[dict[str, Any]]) -> list[str]:
    """Versions and settings that were in force, as each engine reported them."""
    known: dict[tuple[str, str], None] = {}
    for cell in found:
        for engine, said in cell["settings"].items():
            packages = ", ".join(f"{name} {version.split('+')[0]}" for name, version in said["packages"].items())
            used = ", ".join(f"{key}={value}" for key, value in said["settings"].items() if key not in VARYING)
            known[engine, f"{said['version']} | {packages} | {used}"] = None
    rows = [[NAMES[engine], line] for engine, line in sorted(known, key=lambda row: ENGINES.index(row[0]))]
    lines = [f"| {name} | {line} |" for name, line in rows]
    return [
        "## Versions and settings\n",
        "\n".join(["| engine | version | with | settings |", "|---|---|---|---|", *lines, ""]),
    ]


BUSY = 0.05  # share of all cores that others may use before a run counts as disturbed
VARYING = ("nsamples",)  # follows from the cell


if __name__ == "__main__":
    main()
