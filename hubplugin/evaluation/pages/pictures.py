"""Plots as data in the page itself: nothing is fetched. Knows reports and how plots are drawn."""

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hubplugin.evaluation.cards import plots
from hubplugin.evaluation.cards.plots import Plot, Point
from hubplugin.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Picture:
    """A picture, and what a reader who does not see it is told."""

    source: str  # of <img>
    caption: str


def of_variant(report: Report) -> Iterable[Picture]:
    """The plots that show a variant alone, whether it is published or not."""
    for plot in plots.ALL:
        if plot.name != plots.VARIANTS and plot.drawn(report):
            yield Picture(_source(plots.png(plot.height, partial(_draw, plot, report))), plot.caption)


def of_variants(points: Sequence[Point]) -> Picture | None:
    """Perplexity against size; None where there are not two points to compare."""
    names: dict[tuple[float, float], list[str]] = {}  # of models at one place, as two runs with the same numbers are
    for one in points:
        if math.isfinite(one.megabytes) and math.isfinite(one.ratio):
            names.setdefault((one.megabytes, one.ratio), []).append(one.name)
    drawn = [Point(", ".join(dict.fromkeys(known)), *place) for place, known in names.items()]
    if len(drawn) < 2:
        return None
    caption = "Perplexity against size; the line joins what nothing else beats in both"
    return Picture(_source(plots.png(4.2, lambda axes: plots.draw_points(axes, drawn))), caption)


def _draw(plot: Plot, report: Report, axes: "Axes") -> None:
    plot.draw(axes, report)


def _source(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
