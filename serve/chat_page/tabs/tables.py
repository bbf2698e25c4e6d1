"""A table of the page whose columns can be sorted. Knows cells; no model. Texts are escaped here.

Not Gradio's: it sorts a number with its unit as text, and shows no heads to a screen reader.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

MISSING = "–"

# Of a gr.HTML with tables in it: its content is put in anew, so that clicks are heard by the element around it.
SORT = """
element.addEventListener("click", event => {
  const button = event.target.closest?.("table.sortable th button");
  if (!button) return;
  const head = button.closest("th"), table = head.closest("table"), heads = [...head.parentElement.cells];
  const at = heads.indexOf(head), up = head.getAttribute("aria-sort") !== "ascending";
  const numeric = head.classList.contains("number");
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const order = (a, b) => numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", {numeric: true});
  const keyed = [...table.tBodies[0].rows].map(row => [row.cells[at].dataset.key ?? "", row]);
  keyed.sort(([a], [b]) => a === "" || b === "" ? (a === "") - (b === "") : (up ? 1 : -1) * order(a, b));
  table.tBodies[0].append(...keyed.map(([, row]) => row));
});
"""


@dataclass(frozen=True)
class Cell:
    """What is read, and what it is sorted by; neither where nothing is known."""

    text: str = MISSING
    key: float | str | None = None
    mark: str = ""  # a word beside the text


@dataclass(frozen=True)
class Head:
    """A column's name."""

    name: str
    number: bool = True
    about: str = ""  # the same in more words


def table(caption: str, heads: Sequence[Head], rows: Sequence[Sequence[Cell]], *, sortable: bool = True) -> str:
    """The table as HTML, in a box that scrolls sideways where it is wider than the page. The first cell of a row is
    its head."""
    tops = "".join(_head(head, sortable) for head in heads)
    body = "".join(
        f"<tr>{''.join(_cell(*each, first=at == 0) for at, each in enumerate(zip(heads, row, strict=True)))}</tr>"
        for row in rows
    )
    named = html.escape(caption)
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<h2>{named}</h2><div class="box" tabindex="0" role="region" aria-label="{named}">'
        f'<table aria-label="{named}"{kind}><thead><tr>{tops}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _head(head: Head, sortable: bool) -> str:
    name, about = html.escape(head.name), f' title="{html.escape(head.about)}"' if head.about else ""
    kind = "number" if head.number else "words"
    inside = f'<button type="button">{name}</button>' if sortable else name
    return f'<th scope="col" class="{kind}"{about}>{inside}</th>'


def _cell(head: Head, cell: Cell, *, first: bool) -> str:
    key = "" if cell.key is None else f' data-key="{html.escape(str(cell.key))}"'
    kind = "number" if head.number else "words"
    mark = f' <span class="mark">{html.escape(cell.mark)}</span>' if cell.mark else ""
    opened, closed = ('th scope="row"', "th") if first else ("td", "td")
    return f'<{opened} class="{kind}"{key}>{html.escape(cell.text)}{mark}</{closed}>'
