"""report -> the plots of a card as PNG: sizes by component, loss by layer, and all variants of the manifest.

They are drawn where a variant is published, in dark ink on an opaque light ground, which light and dark pages both
leave readable. Knows reports and matplotlib; computes no metric.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubplugin.checkpoint.model_folder import PLOTS
from hubplugin.report import Component, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

SIZES, LOSSES, VARIANTS = PLOTS
INK, GROUND, MARKED, OTHERS = "#1f2328", "#f6f8fa", "#0969da", "#8c959f"
# Okabe and Ito's palette, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/)
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
STYLE: Any = {  # matplotlib.rcParams
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": OTHERS,
    "axes.facecolor": GROUND,
    "figure.facecolor": GROUND,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
WIDTH, DPI = 8.0, 144  # inches, and pixels of each
PLACES = [(x, y) for away in (4, 15, 26) for x in (6, -6) for y in (away, -away)]  # of a label, from its point
LONGEST_NAME = 40  # characters
MARKER = 5  # pixels from a point's middle that a label keeps off
LAYER = re.compile(r"\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Plot:
    """One file."""

    name: str
    height: float  # inches
    drawn: Callable[[Report], bool]  # whether the report has what it shows
    draw: "Callable[[Axes, Report], None]"
    caption: str  # what a reader who does not see it is told


def names(report: Report) -> list[str]:
    """The files of a report's plots. A variant that is not published has none."""
    return [plot.name for plot in of(report)]


def of(report: Report) -> list[Plot]:
    """The plots of a report, in the order of its card."""
    return [plot for plot in ALL if plot.drawn(report)] if report.repo else []


def write(report: Report, folder: Path) -> None:
    """Draw a report's plots into its folder, and remove those of an earlier report that it has no more."""
    wanted = of(report)
    for name in PLOTS:
        if name not in [plot.name for plot in wanted]:
            (folder / name).unlink(missing_ok=True)
    for plot in wanted:
        _write(plot, report, folder)


def _write(plot: Plot, report: Report, folder: Path) -> None:
    unfinished = folder / f"{plot.name}.part"
    unfinished.write_bytes(png(plot.height, lambda axes: plot.draw(axes, report)))
    unfinished.replace(folder / plot.name)


def png(height: float, draw: "Callable[[Axes], None]") -> bytes:
    """A picture of so many inches of height: the same bytes for the same numbers."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        draw(figure.add_subplot())
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", metadata={"Software": None})
    return drawn.getvalue()


# -- sizes by component


def _has_components(report: Report) -> bool:
    return bool(report.sizes.components and report.sizes_base.components)


def _draw_sizes(axes: "Axes", report: Report) -> None:
    """Two bars of stacked bytes: base and variant."""
    bars: dict[str, tuple[Component, ...]] = {
        "this model": report.sizes.components,
        "base": report.sizes_base.components,
    }
    kinds = list(dict.fromkeys(one.name for parts in reversed(bars.values()) for one in parts))
    for kind, colour in zip(kinds, COLOURS, strict=False):
        begins = [sum(_megabytes(parts, earlier) for earlier in kinds[: kinds.index(kind)]) for parts in bars.values()]
        widths = [_megabytes(parts, kind) for parts in bars.values()]
        axes.barh(list(bars), widths, left=begins, color=colour, label=_shown(kind), height=0.6)
    axes.set_xlabel("MB of safetensors")
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(kinds), frameon=False)


def _megabytes(parts: tuple[Component, ...], name: str) -> float:
    return sum(one.bytes for one in parts if one.name == name) / 1e6


# -- loss by layer


def _losses(report: Report) -> dict[str, dict[int, float]]:
    """By kind of linear and block: the loss, of experts the greatest."""
    found: dict[str, dict[int, float]] = {}
    for linear in report.linears:
        place = LAYER.search(linear.name)
        if place is None or not linear.loss:
            continue
        kind = re.sub(r"experts\.\d+\.", "experts.", place[2])
        losses = found.setdefault(kind, {})
        losses[int(place[1])] = max(losses.get(int(place[1]), 0.0), linear.loss)
    return found


def _has_losses(report: Report) -> bool:
    return any(len(losses) > 1 for losses in _losses(report).values())


def _draw_losses(axes: "Axes", report: Report) -> None:
    """The loss of each kind of linear over the blocks."""
    for (kind, losses), colour in zip(sorted(_losses(report).items()), COLOURS, strict=False):
        blocks = sorted(losses)
        axes.plot(
            blocks, [losses[block] for block in blocks], color=colour, marker="o", markersize=3, label=_shown(kind)
        )
    axes.set_yscale("log")
    axes.set_xlabel("block")
    axes.set_ylabel("error / output energy")
    axes.grid(axis="y", alpha=0.3)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)


# -- all variants


def _is_measured(report: Report) -> bool:
    return report.evaluation is not None


@dataclass(frozen=True)
class Point:
    """A model among others of the same base."""

    name: str
    megabytes: float  # of safetensors
    ratio: float  # perplexity over the base's


def _draw_variants(axes: "Axes", report: Report) -> None:
    """The base, this variant and the others of its manifest."""
    assert report.evaluation is not None
    here = report.evaluation.variant.perplexity / report.evaluation.base.perplexity
    others = [Point("base", report.sizes_base.safetensors_bytes / 1e6, 1.0)]
    for other in report.siblings:
        if other.perplexity_ratio is not None:
            others.append(Point(other.variant, other.safetensors_bytes / 1e6, other.perplexity_ratio))
    draw_points(axes, others, Point(report.variant, report.sizes.safetensors_bytes / 1e6, here))


def draw_points(axes: "Axes", others: Sequence[Point], marked: Point | None = None) -> None:
    """Perplexity against bytes, a line through the best, and one of the models in another colour."""
    labels = []
    for one in [*others, marked] if marked else others:
        colour, size = (MARKED, 9) if one is marked else (OTHERS, 6)
        axes.plot(one.megabytes, one.ratio, "o", color=colour, markersize=size)
        ink, weight = (MARKED, "bold") if one is marked else (INK, "normal")
        place = (one.megabytes, one.ratio)
        labels.append(
            axes.annotate(
                _shown(one.name),
                place,
                textcoords="offset points",
                xytext=PLACES[0],
                color=ink,
                weight=weight,
                fontsize=9,
            )
        )
    points = [*others, marked] if marked else others
    axes.plot(*zip(*pareto_front([(one.megabytes, one.ratio) for one in points]), strict=True), color=OTHERS)
    axes.set_xlabel("MB of safetensors")
    axes.set_ylabel("perplexity / base's")
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.3)
    _place(labels, axes)


def _shown(name: str) -> str:
    """A name that leaves room for the plot; what stands between dollar signs is no mathematics."""
    shown = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return shown.replace("$", r"\$")


def _place(labels: "Sequence[Annotation]", axes: "Axes") -> None:
    """Put each label where it covers no point and no earlier label, if there is such a place near its point."""
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # where things are is known only then
    points = [axes.transData.transform(label.xy) for label in labels]
    taken = [Bbox.from_bounds(x - MARKER, y - MARKER, 2 * MARKER, 2 * MARKER) for x, y in points]
    for label in labels:
        for x, y in (*PLACES, PLACES[0]):  # the first again, where all are taken
            label.set(position=(x, y), ha="left" if x > 0 else "right", va="bottom" if y > 0 else "top")
            box = label.get_window_extent()
            if box.x0 > axes.bbox.x0 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(label.get_window_extent())


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (size, ratio) beside which no other is as small and as good, by size."""
    front: list[tuple[float, float]] = []
    for size, ratio in sorted(points):
        if not front or ratio < front[-1][1]:
            front.append((size, ratio))
    return front


ALL = (
    Plot(SIZES, 1.9, _has_components, _draw_sizes, "Bytes of base and this model by component"),
    Plot(LOSSES, 3.2, _has_losses, _draw_losses, "Error of each kind of linear, block by block"),
    Plot(VARIANTS, 3.6, _is_measured, _draw_variants, "Perplexity against size, of the base and all variants"),
)
