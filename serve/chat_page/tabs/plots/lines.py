"""One measure at a few numbers, as a line from zero up, with its values. Knows axes."""

from collections.abc import Callable, Sequence

from serve.chat_page.tabs.plots import axes
from serve.chat_page.tabs.plots.axes import Axis, Frame, Scale


def line(points: Sequence[tuple[float, float]], x: Axis, y: Axis, write: Callable[[float], str], says: str) -> str:
    """The points (x, y) in order, as HTML, each with its y as `write` has it. Values of x stand at equal distances:
    they are few, and chosen."""
    values = [value for value, _ in points]

    def draw(width: int, height: int) -> str:
        place = Scale(-0.4, len(points) - 0.6, axes.LEFT, width - axes.RIGHT)
        down = axes.scale([value for _, value in points], height - axes.BOTTOM, axes.TOP, from_zero=True)
        frame = Frame(width, height, place, down)
        named = Axis(x.name, lambda at: x.write(values[round(at)]))
        spots = [(place(at), down(value), value) for at, (_, value) in enumerate(points)]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top, _ in spots)
        parts = [f'<polyline class="line" points="{path}"/>']
        for left, top, value in spots:
            parts.append(f'<circle class="point group0" cx="{left:.1f}" cy="{top:.1f}" r="4"/>')
            parts.append(axes.text(left, top - 9, write(value), anchor="middle", kind="label"))
        return axes.drawn(frame, named, y, range(len(points))) + "".join(parts)

    return axes.both(draw, says)
