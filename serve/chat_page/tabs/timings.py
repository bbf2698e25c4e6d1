"""A load as the page shows it: how far it has come, a table and plots of what its answers took. Pure functions.

Knows the records of `load`. What a server said is text here, never markup.
"""

import html
from collections.abc import Callable, Sequence

from serve.chat_page.tabs.load import ANSWERS, Progress, Round
from serve.chat_page.tabs.notes import failure, note
from serve.chat_page.tabs.plots.axes import Axis
from serve.chat_page.tabs.plots.lines import line
from serve.chat_page.tabs.tables import Cell, Head, table

BEFORE = "waiting for the model to answer; its engine may have to start"
NOT_COUNTED = "This server does not say how many tokens an answer has: there are no speeds."


def seconds(value: float) -> str:
    """A time, in the unit that it is read in."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms" if value >= 0.01 else f"{value * 1e3:.2f} ms"


def _round(value: float) -> str:
    """A time on an axis, where values are round ones."""
    return f"{value:.4g} s" if value >= 1 else f"{value * 1e3:.4g} ms" if value else "0"


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


Find = Callable[[Round], float | None]
COLUMNS: tuple[tuple[Head, Find, Callable[[float], str]], ...] = (
    (Head("streams", about="Answers at once"), lambda round: round.streams, "{:d}".format),
    (Head("answers"), lambda round: len(round.answers), "{:d}".format),
    (
        Head("tokens", about="Of all answers; a model may end before the limit"),
        lambda round: round.tokens,
        "{:d}".format,
    ),
    (Head("first token", about="Median over the answers"), lambda round: round.first, seconds),
    (Head("slowest first token"), lambda round: round.slowest_first, seconds),
    (Head("per token", about="After the first; median over the answers"), lambda round: round.per_token, seconds),
    (Head("tokens/s", about="Of all streams together"), lambda round: round.tokens_per_second, _rate),
)
PLOTS: tuple[tuple[Axis, Find, Callable[[float], str]], ...] = (
    (Axis("tokens/s, all streams together", "{:.4g}".format), lambda round: round.tokens_per_second, _rate),
    (Axis("first token, median", _round), lambda round: round.first, seconds),
    (Axis("per token after the first, median", _round), lambda round: round.per_token, seconds),
)


def progress(name: str, at: Progress) -> str:
    """How far it has come, as HTML: in words, and as a bar where it runs."""
    if at.error is not None:
        return failure(at.error)
    bar = ""
    if at.stopped:
        said = f"Stopped after {at.answered} of {at.asked} answers; {name} is not asked any more."
    elif at.answered == at.asked:
        said = f"Done: {at.answered} answers of {name}."
    else:
        said = f"{name}: {at.answered} of {at.asked} answers, {f'{at.streams} at once' if at.streams else BEFORE}"
        bar = f'<progress aria-label="answers" max="{at.asked}" value="{at.answered}"></progress>'
    return f'<div role="status">{html.escape(said)}</div>{bar}'


def results(name: str, tokens: int, rounds: Sequence[Round]) -> str:
    """What complete rounds took, as HTML; nothing where there is none."""
    if not rounds:
        return ""
    rows = [[_cell(find(each), write) for _, find, write in COLUMNS] for each in rounds]
    caption = f"{name}: {ANSWERS} answers of each stream, at most {tokens} tokens each"
    plots = "".join(_plot(rounds, *each) for each in PLOTS) if len(rounds) > 1 else ""
    missing = "" if any(each.tokens for each in rounds) else note(NOT_COUNTED)
    shown = table(caption, [head for head, _, _ in COLUMNS], rows, sortable=False)
    return missing + shown + (f'<div class="plots">{plots}</div>' if plots else "")


def _cell(value: float | None, write: Callable[[float], str]) -> Cell:
    return Cell() if value is None else Cell(write(value), value)


def _plot(rounds: Sequence[Round], axis: Axis, find: Find, write: Callable[[float], str]) -> str:
    points = [(each.streams, value) for each in rounds if (value := find(each)) is not None]
    if len(points) < 2:
        return ""
    says = f"Plot of {axis.name} against the number of streams. The table has the same numbers."
    return line(points, Axis("streams", "{:d}".format), axis, write, says)
