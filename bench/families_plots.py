"""The two plots of docs/families.md as SVG, byte for byte the same for the same results. It computes no metric.

Dark ink on an opaque light ground, as the cards' plots: readable on light and on dark pages.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from families_page import BEYOND, file_ratio, measured, plot_names, times_base
from families_result import family, target
from matplotlib.figure import Figure

from hubplugin.evaluation.cards.plots import COLOURS, STYLE

# ids in the file come from this salt, and text stays text: nothing depends on the machine's fonts or clock
FIXED = {"svg.hashsalt": "hubplugin", "svg.fonttype": "none", "font.family": "sans-serif"}
MARKS = "osD^v<>Pp*Xhd8"
DASHES = ("-", "--", ":")
TICKS = (1, 1.25, 1.5, 2, 2.5, 3.2, 4, 5, 6, 8)
Value = Callable[[Mapping[str, Any], Mapping[str, Any]], float]


def write(record: Mapping[str, Any], folder: Path) -> None:
    """Both plots into a folder."""
    kl, whole = plot_names(record)
    _write(folder / kl, record, lambda _, run: run["linears_ratio"], lambda _, run: run["quality"]["mean_kl"], KL)
    _write(folder / whole, record, file_ratio, times_base, PERPLEXITY)


KL = ("times smaller than bfloat16: the blocks' linears", "mean KL to the base, nats per token")
PERPLEXITY = ("times smaller than bfloat16: the whole file", "perplexity over the base's")


def _write(path: Path, record: Mapping[str, Any], across: Value, up: Value, labels: tuple[str, str]) -> None:
    with matplotlib.rc_context({**STYLE, **FIXED}):
        figure = Figure(figsize=(9.0, 5.0), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, record, across, up)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _draw(axes: Any, record: Mapping[str, Any], across: Value, up: Value) -> None:
    """A line for each family that saves bytes, in the manifest's order, which decides colours."""
    runs = measured(record)
    order = list(dict.fromkeys(family(name) for name in record["variants"] if target(name) > 1))
    for number, kind in enumerate(order):
        points = sorted(
            (across(record, run), up(record, run))
            for name, run in runs.items()
            if family(name) == kind and target(name) > 1 and times_base(record, run) <= BEYOND
        )
        if points:
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)], "label": kind}
            axes.plot(*zip(*points, strict=True), linestyle=DASHES[number // len(COLOURS) % len(DASHES)], **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS if low <= tick <= high], minor=False)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.grid(True, alpha=0.3)
    if runs:
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
