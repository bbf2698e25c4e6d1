"""All models of a server beside each other: a table of what its list says, and size against quality. Pure functions.

Knows rows of `catalogue`. What a base does not say of itself follows from what its variants say of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from serve.catalogue import Listed
from serve.chat_page import about
from serve.chat_page.tabs.notes import note
from serve.chat_page.tabs.plots.axes import Axis
from serve.chat_page.tabs.plots.scatter import Point, scatter, short
from serve.chat_page.tabs.tables import Cell, Head, table

NO_MODEL = "The server lists no model."
NO_FACTS = (
    "This server says nothing of its models' size or quality."
    " `hubplugin serve` does, of every model with a report.json."
)
ALONE = (
    "There is one model, and nothing to compare it with. `hubplugin serve MANIFEST` serves a base and all its variants."
)
NO_PLOT = "Too little is known for a plot: it takes two models whose size and quality the server states."
OWN_BASE = "Ratios and divergences are from each model's own base."
SIZE = Axis("size on disk", lambda count: f"{count / 1e9:.4g} GB" if count >= 1e9 else f"{count / 1e6:.4g} MB")


@dataclass(frozen=True)
class Column:
    """A fact in the table: how it is found and how it is written."""

    head: Head
    find: Callable[[Listed], float | str | None]
    write: Callable[[float], str] = str


MADE_FROM = Column(Head("made from", number=False), lambda row: row.parent)  # where there are several bases
COLUMNS = (
    MADE_FROM,
    Column(Head("engine", number=False, about="The state of its engine"), lambda row: row.state),
    Column(Head("size", about="Of its safetensors on disk"), lambda row: row.bytes, about.size),
    Column(Head("against its base", about="Size on disk"), lambda row: row.disk_ratio or None, about.smaller),
    Column(Head("per weight", about="Bits per weight, whole model"), lambda row: row.model_bits_per_weight, about.bits),
    Column(Head("KL per token", about="KL(base ‖ this), mean"), lambda row: row.mean_kl, about.nats),
    Column(Head("KL, p99", about="KL(base ‖ this) per token, 99th percentile"), lambda row: row.p99_kl, about.nats),
    Column(Head("perplexity"), lambda row: row.perplexity, "{:.4g}".format),
    Column(Head("perplexity ratio", about="This over its base"), lambda row: row.perplexity_ratio, about.times),
    Column(
        Head("same top token", about="Share of positions where it and its base rank the same token first"),
        lambda row: row.top1_agreement,
        "{:.1%}".format,
    ),
    Column(Head("parameters"), lambda row: row.parameters, lambda count: _count(count)),
    Column(
        Head("context", about="Prompt and answer together"),
        lambda row: row.max_model_len,
        lambda count: f"{count:,.0f} tokens",
    ),
)
QUALITY = (  # plots: a name, how it is found, how it is written on the axis
    (Axis("KL from its base, nats per token", "{:.4g}".format), lambda row: row.mean_kl),
    (Axis("perplexity over that of its base", lambda ratio: f"x{ratio:.4g}"), lambda row: row.perplexity_ratio),
)


def shown(listed: Sequence[Listed]) -> str:
    """Everything of the tab, as HTML."""
    if not listed:
        return note(NO_MODEL)
    rows = completed(listed)
    stated = any(row.bytes is not None or row.mean_kl is not None or row.perplexity_ratio is not None for row in rows)
    notes = [] if stated else [note(NO_FACTS)]
    notes += [note(ALONE)] if len(listed) == 1 else []
    notes += [note(OWN_BASE)] if len(_bases(listed)) > 1 else []
    plots = [plot for plot in (_plot(listed, axis, find) for axis, find in QUALITY) if plot]
    figures = f'<div class="plots">{"".join(plots)}</div>' if plots else ""
    if stated and len(listed) > 1 and not plots:
        notes.append(note(NO_PLOT))
    return "".join(notes) + _table(rows) + figures


def completed(listed: Sequence[Listed]) -> list[Listed]:
    """The rows, and in a base's the sizes and qualities that follow from a variant's ratios, where it has none."""
    return [_completed(row, listed) for row in listed]


def points(listed: Sequence[Listed], find: Callable[[Listed], float | None]) -> list[Point]:
    """The models whose size and quality are known, bases marked; a base that is not served too."""
    bases = _bases(listed)
    absent = [_completed(Listed(name), listed) for name in bases if name not in {row.name for row in listed}]
    found = []
    for row in [*completed(listed), *absent]:
        size, quality, own = row.bytes, find(row), row.name if row.name in bases else row.parent
        if size is None or quality is None:
            continue
        group = bases.index(own) if own in bases else len(bases)
        says = " · ".join([row.name, *about.facts(row, listed), *(["not served here"] if row in absent else [])])
        base = row.name in bases
        found.append(Point(size, quality, f"{short(row.name)}{' (base)' * base}", says, group, marked=base))
    return found


def _bases(listed: Sequence[Listed]) -> list[str]:
    """Every model that another was made from, in order."""
    return list(dict.fromkeys(row.parent for row in listed if row.parent))


def _completed(row: Listed, listed: Sequence[Listed]) -> Listed:
    variants = [each for each in listed if each.parent == row.name]
    if not variants or row.parent:
        return row
    sizes = [round(each.bytes * each.disk_ratio) for each in variants if each.bytes and each.disk_ratio]
    perplexities = [
        each.perplexity / each.perplexity_ratio for each in variants if each.perplexity and each.perplexity_ratio
    ]
    measured = any(each.mean_kl is not None for each in variants)
    return replace(
        row,
        bytes=row.bytes or next(iter(sizes), None),
        perplexity=row.perplexity or next(iter(perplexities), None),
        perplexity_ratio=1.0 if any(each.perplexity_ratio for each in variants) else row.perplexity_ratio,
        mean_kl=0.0 if measured else row.mean_kl,
    )


def _table(rows: Sequence[Listed]) -> str:
    """Columns of which something is known, and is not the same for all."""
    bases = _bases(rows)
    columns = [each for each in COLUMNS if each is not MADE_FROM or len(bases) != 1]
    known = [each for each in columns if any(each.find(row) is not None for row in rows)]
    caption = f"Models of this server, made from {bases[0]}" if len(bases) == 1 else "Models of this server"
    heads = [Head("model", number=False), *(each.head for each in known)]
    cells = [
        [Cell(row.name, row.name, "base" if row.name in bases else ""), *(_cell(each, row) for each in known)]
        for row in rows
    ]
    return table(caption, heads, cells)


def _cell(column: Column, row: Listed) -> Cell:
    value = column.find(row)
    if value is None:
        return Cell()
    return Cell(value if isinstance(value, str) else column.write(value), value)


def _plot(listed: Sequence[Listed], axis: Axis, find: Callable[[Listed], float | None]) -> str:
    found = points(listed, find)
    if len(found) < 2:
        return ""
    says = f"Plot of {len(found)} models: {SIZE.name} against {axis.name}. The table has the same numbers."
    return scatter(found, SIZE, axis, says)


def _count(count: float) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
