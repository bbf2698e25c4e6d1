"""The page of `hubplugin report` in a real browser, opened from the disk: widths, sorting, no request, no error."""

from pathlib import Path
from typing import Any

import pytest
import test_speed
from card_helpers import report
from serve_helpers import browser
from test_card_plots import full
from test_report_page import EVIL, changed, stand

from hubplugin.evaluation.pages import page, runs

__all__ = ["browser"]  # a fixture

LONG = "no-space-to-break-at-" * 8


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, with names and values that strain a page."""
    root = tmp_path_factory.mktemp("page")
    old = stand(
        root,
        full(variant="Fast", speed=test_speed.measured()),
        report(variant="Not-measured", evaluation=None, notes=(LONG,), manifest_text=f"model: {LONG * 4}"),
        changed(perplexity=9.5, mean_kl=0.02).model_copy(update={"variant": LONG, "versions": {LONG: LONG}}),
        run="old",
    )
    new = stand(root, changed(perplexity=100.25, mean_kl=0.2).model_copy(update={"variant": "Fast"}), run=EVIL[:8])
    path = root / "a page.html"
    path.write_text(page.render(runs.read([old, new])), encoding="utf-8")
    return path


def column(tab: Any, head: str) -> list[str]:
    """The cells below a head of the table of all variants."""
    at = tab.locator("table.all thead th").all_inner_texts()
    place = [one.rstrip(" ↑↓") for one in at].index(head) + 1
    return [
        one.split("±")[0].strip() for one in tab.locator(f"table.all tbody tr > :nth-child({place})").all_inner_texts()
    ]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_sorts_and_fetches_nothing(width: int, scheme: str, browser: Any, written: Path) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    trouble: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(written.as_uri())

    def fits() -> bool:
        return bool(tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))

    assert fits()
    head = tab.locator("table.all thead th", has_text="perplexity").first
    for order, shown in (
        ("ascending", ["9.500", "20.46", "23.87", "100.2", "—"]),
        ("descending", ["100.2", "23.87", "20.46", "9.500", "—"]),  # by number, and what is missing stays last
    ):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order and column(tab, "perplexity") == shown
    name = tab.locator("table.all thead th").first
    name.locator("button").press("Enter")  # by keyboard, and by text
    assert (name.get_attribute("aria-sort"), head.get_attribute("aria-sort")) == ("ascending", None)
    assert column(tab, "variant")[0] == "base (ns/base)"

    tab.locator("table.all tbody a", has_text="Fast").first.click()  # opens what it leads to
    assert tab.locator("details.variant[open] summary").first.inner_text().startswith("Fast")
    tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert fits()
    linears = tab.locator("details.variant[open] table.sortable").first
    linears.locator("th", has_text="loss").locator("button").click()
    assert linears.locator("tbody tr th").first.inner_text() == "model.layers.0.mlp.down_proj"
    loaded = "[...document.images].every(one => one.complete && one.naturalWidth > 0)"
    assert tab.evaluate(loaded) and tab.locator("img").count() > 3
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
    strangers = [url for url in asked if not url.startswith("data:") and url.split("#")[0] != written.as_uri()]
    assert trouble == [] and strangers == []
    tab.close()
