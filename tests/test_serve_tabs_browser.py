"""The tabs Compare and Bench of the chat page in a real browser: on a phone too, by keyboard, and several at once."""

from typing import Any

import pytest
from serve_helpers import Chat, browser, chat, until

__all__ = ["browser"]  # a fixture

EVIL = "me/<img src=x onerror=alert(1)> ${alert(2)} {{x}}"


def facts(size: int, kl: float) -> dict[str, Any]:
    known = {"bytes": size, "disk_ratio": 40_000_000 / size, "mean_kl": kl, "perplexity_ratio": 1 + kl}
    return {"parent": "org/base", "state": "ready", "model_bits_per_weight": 5.0, **known}


FACTS = {"me/int8": facts(20_000_000, 0.01), EVIL: facts(9_000_000, 0.25), "me/int4": facts(11_000_000, 0.03)}
SERVED = {"models": ["org/base", *FACTS], "facts": FACTS}


def on_a_phone(page: Chat) -> None:
    page.tab.set_viewport_size({"width": 390, "height": 800})
    page.tab.emulate_media(color_scheme="dark")
    page.tab.reload()
    page.until_ready()


def fits(page: Chat) -> bool:
    return bool(page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def brightness(page: Chat, selector: str, what: str) -> float:
    """The mean of red, green and blue, 0 to 255."""
    script = "([selector, what]) => getComputedStyle(document.querySelector(selector))[what].match(/[0-9.]+/g)"
    return sum(map(float, page.tab.evaluate(script, [selector, what])[:3])) / 3


def opened(page: Chat, name: str) -> None:
    page.tab.get_by_role("tab", name=name).click()
    if name == "Bench":
        until(lambda: page.tab.locator("#bench-model input").first.input_value())
    else:
        page.tab.locator("#comparison table").wait_for()


def column(page: Chat, head: str) -> list[str]:
    heads = page.tab.locator("#comparison thead th").all_inner_texts()
    at = [each.split(" ↕")[0] for each in heads].index(head) + 1
    return list(page.tab.locator(f"#comparison tbody tr > :nth-child({at})").all_inner_texts())


def progress(page: Chat) -> str:
    return str(page.tab.locator("#bench-progress").inner_text())


@pytest.mark.browser
def test_models_are_compared_sorted_and_nothing_comes_from_outside(browser: Any) -> None:
    with chat(browser, **SERVED) as (page, _server):
        opened(page, "Compare")
        assert column(page, "size") == ["40.0 MB", "20.0 MB", "9.0 MB", "11.0 MB"]  # the base's from its variants
        head = page.tab.get_by_role("columnheader", name="size")
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert column(page, "size") == ["9.0 MB", "11.0 MB", "20.0 MB", "40.0 MB"]  # by number, not by text
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert column(page, "model")[0] == "org/base base" and EVIL in column(page, "model")
        plots = page.tab.get_by_role("img", name="Plot of 4 models")
        assert plots.count() == 2 and plots.first.locator("text.label").count() == 4
        assert plots.first.locator(".marked").count() == 1 and page.tab.locator("#comparison img").count() == 0
        strangers = [url for url in page.asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
        assert strangers == [] and page.trouble == []


@pytest.mark.browser
def test_the_comparison_is_read_on_a_phone_in_the_dark(browser: Any) -> None:
    with chat(browser, **SERVED) as (page, server):
        on_a_phone(page)
        opened(page, "Compare")
        assert fits(page) and page.tab.locator("#comparison svg:visible").count() == 2
        ground = brightness(page, "body", "backgroundColor")
        assert ground < 40 and brightness(page, "#comparison td", "color") > 180
        assert brightness(page, "svg.narrow text.label", "fill") > 180
        letters = page.tab.locator("#comparison svg:visible text.label").first.bounding_box()
        assert letters is not None and letters["height"] >= 10  # pixels
        server.models, server.facts = ["only"], {}
        page.tab.get_by_role("tab", name="Chat").click()
        opened(page, "Compare")
        until(lambda: "There is one model" in page.tab.locator("#comparison").inner_text())


@pytest.mark.browser
def test_a_bench_is_stopped_others_are_told_and_a_closed_page_leaves_nothing(browser: Any) -> None:
    with chat(browser, words=["word "] * 100_000, pause=0.02) as (page, server):
        opened(page, "Bench")
        page.press("Start bench")
        until(lambda: "its engine may have to start" in progress(page))
        other = Chat(browser, page.tab.url)
        opened(other, "Bench")
        other.press("Stop bench")  # not theirs
        other.press("Start bench")
        until(lambda: "another bench is running" in progress(other))
        assert server.left == []
        page.press("Stop bench")
        until(lambda: server.left == ["steady"])  # the engine stops generating
        until(lambda: "Stopped" in progress(page))
        page.press("Start bench")
        until(lambda: len(server.requests) == 2)
        page.tab.close()
        until(lambda: server.left == ["steady"] * 2)
        other.press("Start bench")
        until(lambda: "its engine may have to start" in progress(other))
        assert other.trouble == []
        other.tab.close()


@pytest.mark.browser
def test_a_bench_on_a_phone_by_keyboard_and_an_engine_that_dies(browser: Any) -> None:
    with chat(browser, models=["steady", "dies"], pause=0.005) as (page, server):
        on_a_phone(page)
        opened(page, "Bench")
        tab = page.tab
        group = tab.get_by_role("group", name="Streams at once")
        group.get_by_role("checkbox", name="4").press("Space")
        tab.get_by_label("Tokens per answer").first.fill("16")
        tab.get_by_role("button", name="Start bench").press("Enter")
        until(lambda: "Done: 6 answers of steady." in progress(page))
        assert [request["max_tokens"] for request in server.requests] == [4] + [16] * 6
        assert tab.get_by_role("rowheader").all_inner_texts() == ["1", "2"]
        assert tab.get_by_role("img", name="against the number of streams").count() == 3 and fits(page)
        assert tab.get_by_role("status").filter(has_text="Done").count() == 1
        assert tab.evaluate("document.activeElement.id") == "bench-start"  # the keyboard stays where it was
        page.choose("bench-model", "dies")
        tab.get_by_role("button", name="Start bench").press("Enter")
        until(lambda: "stopped in the middle" in tab.get_by_role("alert").first.inner_text())
        assert page.trouble == []
