"""The page's style as a real browser has it, after Gradio has put its own selectors before every one of ours."""

from typing import Any

import gradio as gr
import pytest
from serve_helpers import browser, chat, until
from test_serve_divergence import SERVED, VOCABULARY

from serve import page_server, ports
from serve.chat_page import style
from serve.chat_page.markup import tokens
from serve.chat_page.tabs import style as tabs_style

__all__ = ["browser"]  # a fixture

SAID = "- a\n  1. b\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1 # c\n```\n\n- [x] done\n\n$$x$$\n\n`a`"
FACTS = {
    "org/base": {"bytes": 20_000_000},
    "me/small": {"parent": "org/base", "bytes": 8_812_345, "disk_ratio": 2.2, "mean_kl": 0.03, "perplexity_ratio": 1.1},
}
# Of each of our rules as it is written: how many elements it names, and how many of them no rule with the same
# declarations reaches. What follows `::`, and where the mouse is, is left out of both.
RULES = r"""
css => {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(css);
  const flat = rules => [...rules].flatMap(rule =>
    rule instanceof CSSStyleRule ? [rule]
      : rule instanceof CSSMediaRule && matchMedia(rule.media.mediaText).matches ? flat(rule.cssRules) : []);
  const shown = [...document.styleSheets].flatMap(each => flat(each.cssRules));
  const plain = selector => selector.replace(/::[\w-]+/g, "");
  return flat(sheet.cssRules).map(rule => {
    const named = [...document.querySelectorAll(plain(rule.selectorText))];
    const same = shown.filter(each => each.style.cssText === rule.style.cssText);
    const missed = named.filter(element => !same.some(each => element.matches(plain(each.selectorText))));
    return [rule.selectorText, named.length, missed.length];
  });
}
"""


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_rule_reaches_what_it_names(browser: Any, theme: str) -> None:
    says = {**SERVED["says"], "steady": [SAID]}
    served = {**SERVED, "models": [*SERVED["models"], "steady"], "says": says, "facts": FACTS, "vocabulary": VOCABULARY}
    css = style.CSS + tabs_style.CSS + tokens.CSS
    used: set[str] = set()
    with chat(browser, **served) as (page, _server):
        if theme == "dark":
            page.tab.evaluate("document.body.classList.add('dark')")
        page.choose("compare", "me/small")
        until(lambda: page.tab.locator("#chat-b").count())
        page.choose("colour", "KL to the other model")
        page.say("What is a list?")
        until(lambda: page.tab.get_by_text("how far the models are").count() == 2 and page.can_send())
        page.choose("compare", "steady")
        page.say("More?")
        until(lambda: page.tab.locator("#chat-b .katex").count() and page.can_send())
        for fold in page.tab.get_by_text("how far the models are").all():
            fold.click()
        until(lambda: page.tab.locator(".tokens .sequence span").count())
        for width in (390, 1280, 1920):
            page.tab.set_viewport_size({"width": width, "height": 900})
            for tab in ("Compare", "Chat"):
                page.tab.get_by_role("tab", name=tab).click()
                until(page.tab.locator(f"#{tab.lower()}-tab").is_visible)
                found = page.tab.evaluate(RULES, css)
                assert [rule for rule in found if rule[2]] == []
                used |= {selector for selector, named, _ in found if named}
    assert len(used) > 90 and any(":is(" in selector for selector in used)


@pytest.mark.browser
def test_lists_between_brackets_have_their_effect(browser: Any) -> None:
    """Rules with `:is(a, b)`, by what a reader sees of them."""
    with chat(browser, models=["org/base", "me/small"], words=[SAID], facts=FACTS) as (page, _server):
        page.choose("compare", "me/small")
        until(lambda: page.tab.locator("#about-b b").count())
        page.say("What is a list?")
        until(lambda: page.tab.locator("#difference p").count() and page.can_send())

        def look(selector: str, key: str) -> set[str]:
            every = "(all, key) => all.map(one => getComputedStyle(one)[key])"
            return set(page.tab.locator(selector).evaluate_all(every, key))

        assert look(".about .html-container", "padding") == look("#difference .html-container", "padding") == {"0px"}
        for block in (".about", "#difference"):
            assert look(f'{block} [data-testid="status-tracker"]', "display") == {"none"}
        assert look("#chat .md li ol", "fontSize") == look("#chat .md ul", "fontSize") != set()


@pytest.mark.browser
def test_a_list_is_broken_within_has_and_media_together_alone(browser: Any) -> None:
    """What is avoided here, and that the look at rules would see it."""
    selectors = {"#one:is(p, div)": 0, "#one:has(b, i)": 0, ":is(#one, #two) i": 0}
    media = {"#one:is(p, section)": 0, ":is(#one, #two) b": 0, "#one:has(s, u)": 1, "#two:has(> b, > i)": 1}
    css = " ".join(f"{each} {{order: {at}}}" for at, each in enumerate(selectors))
    css += f"@media (min-width: 1px) {{{' '.join(f'{each} {{order: {at}}}' for at, each in enumerate(media, 10))}}}"
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML("<p id='one'>a<u>b</u><b>c</b><i>d</i></p><p id='two'><i>e</i></p>")
    url = page_server.launch(blocks, ports.LOOPBACK, None, middleware=[], css=css)
    tab = browser.new_page()
    try:
        tab.goto(url)
        until(lambda: tab.locator("#two i").count())
        found = tab.evaluate(RULES, css)
        assert {selector: missed for selector, _, missed in found} == {**selectors, **media}
        assert all(named for _, named, _ in found)
    finally:
        tab.close()
        blocks.close(verbose=False)
