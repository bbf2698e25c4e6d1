"""Prints the measured table of a folder of variants as Markdown. It computes nothing that is not in a report.json.

python bench/table.py out/demo/variants
"""

import argparse
from pathlib import Path

from hubplugin import report

COLUMNS = (
    "variant | MB | smaller | bits/weight, linears | bits/weight, model | perplexity | vs. base | mean KL | p99 KL "
    "| top-1 same | compress, s | peak, GB"
)


def row(made: report.Report) -> str:
    """One line of the table."""
    sizes, measured = made.sizes, made.evaluation
    cells = [
        made.variant,
        f"{sizes.safetensors_bytes / 1e6:.1f}",
        f"{made.disk_ratio:.2f}x",
        f"{sizes.linear_bits_per_weight:.2f}",
        f"{sizes.model_bits_per_weight:.2f}",
    ]
    if measured is None:
        cells += ["-"] * 5
    else:
        quality = measured.variant
        cells += [
            f"{quality.perplexity:.3f} ± {quality.perplexity_stderr:.3f}",
            f"{quality.perplexity / measured.base.perplexity:.4f}",
            *("-" if value is None else f"{value:.4f}" for value in (quality.mean_kl, quality.p99_kl)),
            "-" if quality.top1_agreement is None else f"{quality.top1_agreement:.1%}",
        ]
    return " | ".join([*cells, f"{made.seconds['compress and export']:.1f}", f"{made.peak_memory_bytes / 1e9:.2f}"])


def base_row(made: report.Report) -> str:
    """The base, as every report of the folder carries it."""
    sizes = made.sizes_base
    quality = made.evaluation.base if made.evaluation else None
    perplexity = f"{quality.perplexity:.3f} ± {quality.perplexity_stderr:.3f}" if quality else "-"
    return (
        f"base ({made.base.repo}) | {sizes.safetensors_bytes / 1e6:.1f} | 1.00x | {sizes.linear_bits_per_weight:.2f} | "
        f"{sizes.model_bits_per_weight:.2f} | {perplexity} | 1.0000 | 0 | 0 | 100.0% | - | -"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    reports = [report.read(path.parent) for path in sorted(folder.glob("*/report.json"))]
    if not reports:
        parser.error(f"{folder} holds no variants; run `hubplugin run` first")
    print(f"| {COLUMNS} |")
    print("|---|" + "---:|" * COLUMNS.count("|"))
    for line in [base_row(reports[0]), *map(row, reports)]:
        print(f"| {line} |")


if __name__ == "__main__":
    main()
