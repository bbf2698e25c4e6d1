"""The frame of a plot: scales, round ticks, a grid, names of the axes. Knows no data but its range.

Ours, because a plot of Gradio's is a picture without the page's colours and fonts (Matplotlib), or megabytes of
JavaScript (Plotly, Altair).
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP, BOTTOM = 58, 16, 30, 44  # pixels around the frame, for numbers and names
LETTER = 7.6  # pixels that a letter of a label takes, about
FEW, MANY = 4, 6  # steps between ticks, of a narrow plot and of a wide one
NARROW, WIDE = (340, 300), (520, 340)  # pixels; text keeps its size on both


@dataclass(frozen=True)
class Axis:
    """What a direction of a plot means."""

    name: str
    write: Callable[[float], str]


@dataclass(frozen=True)
class Scale:
    """Values to pixels: linear, or by the logarithm where `log`."""

    low: float
    high: float
    start: float  # pixel of `low`
    end: float  # pixel of `high`
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (at - low) / (high - low)


@dataclass(frozen=True)
class Frame:
    """Where a plot's data may be drawn, and how a value becomes a place."""

    width: int
    height: int
    x: Scale
    y: Scale


def scale(values: Sequence[float], start: float, end: float, *, from_zero: bool) -> Scale:
    """A scale on which all values have room. Values that differ more than tenfold are on a logarithmic one, unless it
    is to begin at zero."""
    low, high = min(values), max(values)
    if from_zero:
        return Scale(0.0, high * 1.1 or 1.0, start, end)
    if low > 0 and high / low > 10:
        return Scale(low / 1.3, high * 1.3, start, end, log=True)
    room = 0.12 * (high - low) or 0.2 * abs(high) or 1.0
    return Scale(low - room if low < 0 else max(0.0, low - room), high + room, start, end)


def ticks(scale: Scale, most: int) -> list[float]:
    """Round values within a scale: at most `most` steps of 1, 2 or 5 times a power of ten."""
    if scale.log:
        powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        every = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        within = [value for value in every if scale.low <= value <= scale.high]
        return within[:: math.ceil(len(within) / most)] if within else []
    raw = (scale.high - scale.low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def drawn(frame: Frame, x: Axis, y: Axis, across: Sequence[float] | None = None) -> str:
    """Grid, numbers and names, as SVG. `across`: the values that x is marked at, in place of round ones."""
    wide = frame.width >= WIDE[0]
    bottom, right = frame.height - BOTTOM, frame.width - RIGHT
    parts = []
    for value in ticks(frame.y, MANY if wide else FEW):
        at = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(text(LEFT - 6, at + 4, y.write(value), anchor="end"))
    for value in ticks(frame.x, MANY if wide else FEW) if across is None else across:
        at = frame.x(value)
        parts.append(f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(text(at, bottom + 18, x.write(value), anchor="middle"))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(text((LEFT + right) / 2, frame.height - 6, x.name, anchor="middle", kind="name"))
    parts.append(text(4, 14, y.name, kind="name"))
    return "".join(parts)


def text(x: float, y: float, words: str, *, anchor: str = "start", kind: str = "number") -> str:
    """Words at a place, as SVG."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def both(draw: Callable[[int, int], str], says: str) -> str:
    """A plot for wide and for narrow places, of which the page shows one. `says` is what is read out in its place."""
    figures = []
    for kind, (width, height) in (("wide", WIDE), ("narrow", NARROW)):
        opened = f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(says)}">'
        figures.append(f"{opened}{draw(width, height)}</svg>")
    return f'<div class="plot">{"".join(figures)}</div>'
