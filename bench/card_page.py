"""A card as a page: its Markdown as HTML, with the folder's pictures, and what a browser then finds broken in it.

GitHub's Markdown is what the Hub shows; markdown-it knows its tables. The page is for looking at, not the Hub's own.
"""

from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from hubplugin import front_matter

WIDTHS = (390, 1280)
STYLE = """
body {max-width: 800px; margin: 24px auto; padding: 0 16px; font: 16px/1.5 system-ui, sans-serif;
  color: light-dark(#1f2328, #e6edf3); background: light-dark(#fff, #0d1117); color-scheme: light dark}
table {display: block; max-width: 100%; overflow-x: auto; border-collapse: collapse; margin: 16px 0}
th, td {border: 1px solid light-dark(#d1d9e0, #3d444d); padding: 6px 13px}
pre {overflow-x: auto; padding: 16px; font-size: 85%; background: light-dark(#f6f8fa, #151b23)}
code {font-size: 85%; overflow-wrap: anywhere}
img {max-width: 100%}
"""
# what a reader would see as broken: pictures that do not load, rows that are no table, rows of another length
LOOK = """() => {
  const found = [];
  for (const picture of document.images)
    if (!picture.complete || !picture.naturalWidth) found.push(`picture ${picture.getAttribute("src")}`);
  for (const row of document.querySelectorAll("table tr")) {
    const head = row.closest("table").rows[0];
    if (row.cells.length !== head.cells.length) found.push(`row ${row.innerText}`);
  }
  for (const text of document.querySelectorAll("p, li, h1, h2, h3"))
    if (/^\\s*\\|/m.test(text.innerText)) found.push(`no table: ${text.innerText.slice(0, 80)}`);
  if (document.documentElement.scrollWidth > window.innerWidth) found.push("wider than the window");
  return found;
}"""


def html(folder: Path) -> str:
    """The card of a folder as a page; pictures are found from the folder, where the page must lie to be opened."""
    body = front_matter.behind((folder / "README.md").read_text(encoding="utf-8"))
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{parser.render(body)}"


def faults(browser: Any, folder: Path, pictures: Path | None = None) -> list[str]:
    """What is broken in a card in a real browser (of playwright), at all WIDTHS, on light and on dark ground.

    With `pictures` a screenshot of each is left there, as FOLDER-WIDTH.png.
    """
    path = folder / "card.html"
    path.write_text(html(folder), encoding="utf-8")
    found = []
    try:
        for width, scheme in zip(WIDTHS, ("dark", "light"), strict=True):
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab.goto(path.as_uri())
            found += [f"{width} px: {fault}" for fault in tab.evaluate(LOOK)]
            if pictures:
                pictures.mkdir(parents=True, exist_ok=True)
                tab.screenshot(path=pictures / f"{folder.name}-{width}.png", full_page=True)
            tab.close()
    finally:
        path.unlink()
    return found
