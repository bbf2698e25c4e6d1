"""What a reader of the chat page sees of an answer, in a real browser: code, formulas, tables, reasoning, copies."""

import json
import re
import time
from typing import Any

import pytest
from serve_helpers import Chat, browser, chat, fake, until

from serve.chat_page import app

__all__ = ["browser"]  # a fixture

CODE = """\
So:

- in a list:
  ```cpp
  if (a < b && *p) f<int>();
  ```
- two spaces:
  * `List<int>`
  * ``a ` <b>``

````html
```
<td>&amp;</td>
```
````

    x = a < b & c

| `a<b>` | <i> |
|---|---|
| x & y | z |
"""
BLOCKS = ["if (a < b && *p) f<int>();\n", "```\n<td>&amp;</td>\n```\n", "x = a < b & c\n"]
FORMULAS = r"""
Inline $a_1 < b_1$ and \( b_2 * c_2 \), prices of $5 and $10, code `$x$` and `\(y\)`.

$$c_3 & d$$

\[
d_4
- e \text{<b>}
\]
"""


def answered(page: Chat, question: str = "Show me.") -> None:
    """Ask, and wait for the whole answer to be drawn."""
    before = page.answers()
    page.say(question)
    until(lambda: page.answers() > before and re.search(r"\d\.\d s", page.status()))
    until(page.can_send)


def words(text: str) -> list[str]:
    """The text in pieces as small as a token."""
    return [text[at : at + 3] for at in range(0, len(text), 3)]


def texts(page: Chat, selector: str) -> list[str]:
    return list(page.tab.locator(f"#chat .bot {selector}").all_text_contents())


def copies(page: Chat, button: Any, text: str) -> None:
    """Click a copy button until the clipboard holds a text: a click may meet a page that is being laid out."""
    box = page.tab.locator("#box textarea")
    deadline, found = time.monotonic() + 30, ""
    while found != text and time.monotonic() < deadline:
        button.click()
        box.fill("")
        box.press("Control+V")
        found = str(box.input_value())
    assert found == text


@pytest.mark.browser
def test_code_is_shown_with_its_own_characters_wherever_it_stands(browser: Any) -> None:
    with chat(browser, words=[CODE]) as (page, _server):
        answered(page, CODE)
        for whose in (".bot", ".user"):
            assert page.tab.locator(f"#chat {whose} pre code").all_text_contents() == BLOCKS
            inline = page.tab.locator(f"#chat {whose} :not(pre) > code").all_text_contents()
            assert inline == ["List<int>", "a ` <b>", "a<b>"]
            assert page.tab.locator(f"#chat {whose} th").all_inner_texts() == ["a<b>", "<i>"]
        assert "&lt;" not in page.said() and page.said().count("&amp;") == 2


@pytest.mark.browser
def test_formulas_of_all_delimiters_are_typeset_and_prices_and_code_are_not(browser: Any) -> None:
    with chat(browser, words=[FORMULAS]) as (page, _server):
        answered(page)
        until(lambda: len(texts(page, ".katex")) == 3)
        assert texts(page, ".katex annotation") == ["a_1 < b_1", "b_2 * c_2", "d_4\n- e \\text{<b>}"]
        assert texts(page, ".katex-display annotation") == ["d_4\n- e \\text{<b>}"]
        assert texts(page, ".katex-error") == ["c_3 & d"]  # TeX's own complaint about the stray `&`
        assert "prices of $5 and $10, code $x$ and \\(y\\)." in page.said()
        assert page.tab.locator("#chat .md em, #chat .md b").count() == 0


@pytest.mark.browser
def test_no_markup_of_an_answer_runs_or_calls_out_in_any_form(browser: Any) -> None:
    with fake() as outside:
        attack = f"""
<iframe src="{outside.url}/frame"></iframe> <svg onload="window.pwned = 1"></svg>

[a](javascript:window.pwned=1) ![b](data:image/svg+xml,<svg/onload=alert(1)>)

$\\href{{javascript:window.pwned=1}}{{x}}$

$\\text{{<img src={outside.url}/secret.png onerror=window.pwned=1>}}$

\\[\\includegraphics{{{outside.url}/secret.png}}\\]

```mermaid
graph TD; A["<img src={outside.url}/secret.png onerror=window.pwned=1>"]
```

```"><img src=x onerror=window.pwned=1>
x
```

\ue000<img src=x onerror=window.pwned=1>\ue001 <!--said:AAAA--> %%%LATEX_BLOCK_0%%%

done
"""
        with chat(browser, words=[attack]) as (page, _server):
            answered(page, attack)
            live = "#chat .md :is(script, iframe, img, object, embed, form, style, link, [onerror], [onload], .mermaid)"
            assert page.tab.locator(live).count() == 0
            hrefs = page.tab.locator("#chat .md a").evaluate_all("all => all.map(one => one.href)")
            assert [each for each in hrefs if not each.startswith("http")] == []
            assert page.tab.evaluate("window.pwned") is None
        assert outside.paths == []


@pytest.mark.browser
@pytest.mark.parametrize("said", [CODE, FORMULAS.replace(" & d", " + d")])
def test_while_an_answer_grows_nothing_is_drawn_that_is_not_there_in_the_end(browser: Any, said: str) -> None:
    watch = """() => {
      window.seen = new Set();
      const look = () => document.querySelectorAll('#chat .bot .md *').forEach(each =>
        each.closest('.unfinished, .katex') || window.seen.add(each.tagName));
      new MutationObserver(look).observe(document.querySelector('#chat'), {childList: true, subtree: true});
    }"""
    with chat(browser, words=words(said), pause=0.02) as (page, _server):
        page.tab.evaluate(watch)
        answered(page)
        seen = set(page.tab.evaluate("[...window.seen]"))
        tags = "all => all.filter(each => !each.closest('.katex')).map(each => each.tagName)"
        assert seen == set(page.tab.locator("#chat .bot .md *").evaluate_all(tags)) and "CODE" in seen


@pytest.mark.browser
@pytest.mark.parametrize("clipboard", [True, False])
def test_copying_a_message_gives_what_was_said(browser: Any, clipboard: bool) -> None:
    with fake(words=[CODE, FORMULAS, "é 😀"]) as server, app.launch(server.url) as served:
        page = Chat(browser, served.url)
        page.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
        if not clipboard:  # as on a page over plain HTTP from another machine
            page.tab.add_init_script("delete Navigator.prototype.clipboard")
            page.tab.reload()
            page.until_ready()
        answered(page)
        copies(page, page.tab.locator("#chat .message-buttons button").last, CODE + FORMULAS + "é 😀")
        copies(page, page.tab.locator("#chat .copy_code_button").first, "if (a < b && *p) f<int>();")
        page.tab.close()


@pytest.mark.browser
def test_reasoning_sent_apart_folds_away_and_is_not_sent_back(browser: Any) -> None:
    deltas = [{"reasoning_content": "Let me **think** about <b>."}, {"content": "So: "}, {"content": "42."}]
    rows = [{"choices": [{"delta": each}]} for each in deltas] + [{"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    raw = [b"data: " + json.dumps(row).encode() + b"\r\n\r\n" for row in rows]
    with chat(browser, raw=raw) as (page, server):
        answered(page)
        assert "So: 42." in page.said()
        until(lambda: "Let me" not in page.said())  # it takes a moment to fold
        page.tab.locator("#chat .bot").get_by_text("Reasoning").click()
        until(lambda: "Let me think about <b>." in page.said())
        answered(page, "And now?")
        assert [each["content"] for each in server.requests[1]["messages"]] == ["Show me.", "So: 42.", "And now?"]
        assert all(set(each) == {"role", "content"} for each in server.requests[1]["messages"])


@pytest.mark.browser
def test_a_stopped_answer_is_shown_to_its_end(browser: Any) -> None:
    with chat(browser, words=["Use `x` or ", "**", "never"], models=["silent"]) as (page, _server):
        page.say("Go on.")
        until(lambda: "Use x or" in page.said())
        assert "**" not in page.said()
        page.press("Stop")
        until(lambda: "**" in page.said())


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_narrow_window_is_never_scrolled_sideways(browser: Any, theme: str) -> None:
    wide = "| " + " | ".join("column" for _ in range(12)) + " |\n|" + "---|" * 12 + "\n"
    long = (
        f"{wide}\n```\n{'x = 1; ' * 40}\n```\n\n$${'x^2 + ' * 40} 1$$\n\nhttps://example.org/{'a' * 200}\n\n{'w' * 300}"
    )
    with fake(words=[long]) as server, app.launch(server.url) as served:
        page = Chat(browser, f"{served.url}/?__theme={theme}")
        page.tab.set_viewport_size({"width": 390, "height": 844})
        answered(page)
        until(lambda: len(texts(page, ".katex")) == 1)
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= 390
        over = "all => all.filter(each => each.getBoundingClientRect().right > 390).length"
        assert page.tab.locator("#chat .message, #chat .md > *").evaluate_all(over) == 0
        for scrolled in (".table", "pre", ".katex-display"):
            box = page.tab.locator(f"#chat .bot {scrolled}")
            assert box.evaluate("each => each.scrollWidth > each.clientWidth"), scrolled
        page.tab.close()
