"""Points with their names, of which no two lie on each other as long as there is room. Knows axes."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve.chat_page.tabs.plots import axes
from serve.chat_page.tabs.plots.axes import Axis, Frame

LONGEST = 24  # letters of a name beside its point
GROUPS = 6  # colours; further groups begin again with the first
RADIUS, LINE = 5.0, 13.0  # pixels of a point, and of a line of text
TOUCH = 1.0  # pixels that two names may share: their letters do not fill a line
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """One of a plot. The same group has the same colour; a marked one has another shape."""

    x: float
    y: float
    name: str
    says: str  # when a pointer rests on it
    group: int = 0
    marked: bool = False


def scatter(points: Sequence[Point], x: Axis, y: Axis, says: str) -> str:
    """The points, as HTML."""

    def draw(width: int, height: int) -> str:
        across = axes.scale([point.x for point in points], axes.LEFT, width - axes.RIGHT, from_zero=False)
        down = axes.scale([point.y for point in points], height - axes.BOTTOM, axes.TOP, from_zero=False)
        frame = Frame(width, height, across, down)
        shapes = "".join(_shape(frame, point) for point in points)
        return axes.drawn(frame, x, y) + _names(frame, points) + shapes

    return axes.both(draw, says)


def short(name: str) -> str:
    """A name's last part, its end kept where it is long: variants of a model differ there."""
    last = name.rstrip("/").rpartition("/")[2] or name
    return last if len(last) <= LONGEST else f"…{last[-LONGEST + 1 :]}"


def _shape(frame: Frame, point: Point) -> str:
    x, y, title = frame.x(point.x), frame.y(point.y), f"<title>{html.escape(point.says)}</title>"
    kind = f"point group{point.group % GROUPS}"
    if point.marked:
        size = RADIUS + 2
        corners = f"{x:.1f},{y - size:.1f} {x + size:.1f},{y:.1f} {x:.1f},{y + size:.1f} {x - size:.1f},{y:.1f}"
        return f'<polygon class="{kind} marked" points="{corners}">{title}</polygon>'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}">{title}</circle>'


def _names(frame: Frame, points: Sequence[Point]) -> str:
    """Each name at the nearest place that is free; with a line to its point where that is not beside it. One that
    finds none is left out, and is read when a pointer rests on the point."""
    places = [(frame.x(point.x), frame.y(point.y)) for point in points]
    taken = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in places]
    found = []
    for point, (x, y) in zip(points, places, strict=True):
        for box, far in _candidates(x, y, len(point.name) * axes.LETTER):
            if _inside(frame, box) and not any(_meet(box, other) for other in taken):
                taken.append(box)
                if far:
                    end = min(max(x, box[0]), box[2])
                    height = box[3] if box[3] < y else box[1]
                    found.append(f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{height:.1f}"/>')
                left = box[2] <= x  # ends at its point, however wide its letters are
                found.append(
                    axes.text(
                        box[2] if left else box[0],
                        box[3] - 3,
                        point.name,
                        kind="label",
                        anchor="end" if left else "start",
                    )
                )
                break
    return "".join(found)


def _candidates(x: float, y: float, width: float) -> Iterator[tuple[Box, bool]]:
    """Boxes for a name around a point, the nearest first, and whether it needs a line."""
    half = LINE / 2
    yield (x + 9, y - half, x + 9 + width, y + half), False
    yield (x - 9 - width, y - half, x - 9, y + half), False
    for away in range(1, 11):
        for top in (y - 8 - LINE * away, y + 8 + LINE * (away - 1)):
            for left in (x - width / 2, x + 6, x - 6 - width, x - width * 0.25, x - width * 0.75):
                yield (left, top, left + width, top + LINE), away > 1


def _inside(frame: Frame, box: Box) -> bool:
    return (
        box[0] >= axes.LEFT
        and box[2] <= frame.width - 2
        and box[1] >= axes.TOP - 8
        and box[3] <= frame.height - axes.BOTTOM
    )


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] + TOUCH < other[3] and other[1] + TOUCH < one[3]
