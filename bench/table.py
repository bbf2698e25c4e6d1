"""Prints the measured table of a folder of variants as Markdown. It computes nothing that is not in a report.json.

python bench/table.py out/demo/variants
"""

import argparse
from pathlib import Path

from hubplugin import report
from hubplugin.evaluation.metrics import QUALITY, SIZES, Column, Metric, Record

COLUMNS = (
    "variant",
    *(metric.column.head for metric in SIZES if metric.column),
    *(metric.column.head for metric in QUALITY if metric.column),
    "compress, s",
    "peak, GB",
)


def cells(metrics: tuple[Metric[Record], ...], variant: Record | None, base: Record | None) -> list[str]:
    """The cells of one line, one for each metric that has a column; "-" for what was not measured."""
    return [_cell(metric, metric.column, variant, base) for metric in metrics if metric.column]


def _cell(metric: Metric[Record], column: Column, variant: Record | None, base: Record | None) -> str:
    if variant is base and column.base is not None:
        return column.base
    value = metric.value(variant, base) if variant and base else None
    if variant is None or value is None:
        return "-"
    stderr = metric.stderr(variant) if metric.stderr else None
    return column.text(value) + ("" if stderr is None else f" ± {column.text(stderr)}")


def row(made: report.Report) -> str:
    """The line of a variant."""
    sizes = cells(SIZES, made.sizes, made.sizes_base)
    if made.evaluation:
        measured = cells(QUALITY, made.evaluation.variant, made.evaluation.base)
    else:
        measured = ["-" for metric in QUALITY if metric.column]
    seconds, peak = f"{made.seconds['compress and export']:.1f}", f"{made.peak_memory_bytes / 1e9:.2f}"
    return " | ".join([made.variant, *sizes, *measured, seconds, peak])


def base_row(made: report.Report) -> str:
    """The line of the base, as every report of the folder carries it."""
    quality = made.evaluation.base if made.evaluation else None
    sizes, measured = cells(SIZES, made.sizes_base, made.sizes_base), cells(QUALITY, quality, quality)
    return " | ".join([f"base ({made.base.repo})", *sizes, *measured, "-", "-"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    reports = [report.read(path.parent) for path in sorted(folder.glob("*/report.json"))]
    if not reports:
        parser.error(f"{folder} holds no variants; run `hubplugin run` first")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---|" + "---:|" * (len(COLUMNS) - 1))
    for line in [base_row(reports[0]), *map(row, reports)]:
        print(f"| {line} |")


if __name__ == "__main__":
    main()
