"""Prints what budgets bought: each uniform variant and the one of the same bytes, as Markdown. All from report.json.

python bench/allocation.py out/allocation
"""

import argparse
from collections import Counter
from pathlib import Path

from hubplugin import report

COLUMNS = (
    "variant | bytes | bits/weight, linears | predicted KL | mean KL | p99 KL | perplexity, vs. base | units by grid"
)


def row(made: report.Report) -> str:
    """One line of the table."""
    assert made.evaluation is not None
    quality, spent = made.evaluation.variant, made.allocation
    grids = Counter(f"int{unit.bits} g{unit.group_size}" for unit in spent.units) if spent else Counter()
    cells = [
        made.variant,
        f"{made.sizes.safetensors_bytes}",
        f"{made.sizes.linear_bits_per_weight:.3f}",
        f"{spent.predicted_kl:.4f}" if spent else "-",
        *("-" if value is None else f"{value:.4f}" for value in (quality.mean_kl, quality.p99_kl)),
        f"{quality.perplexity / made.evaluation.base.perplexity:.4f}",
        ", ".join(f"{count} {grid}" for grid, count in grids.most_common()) or "all alike",
    ]
    return " | ".join(cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    reports = [report.read(path.parent) for path in folder.glob("*/report.json")]
    if not reports:
        parser.error(f"{folder} holds no variants; run `hubplugin run` first")
    print(f"| {COLUMNS} |")
    print("|---|" + "---:|" * COLUMNS.count("|"))
    for made in sorted(reports, key=lambda made: (made.sizes.linear_bits_per_weight, made.variant)):
        print(f"| {row(made)} |")


if __name__ == "__main__":
    main()
