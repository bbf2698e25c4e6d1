"""Markdown of a conversation as HTML: what is read, what can never run, formulas and prices, and text that grows."""

import base64
import html
import re

import pytest

from hubplugin.errors import ServeError
from serve.chat_page import conversation
from serve.chat_page.markup import formulas, markdown

FORMULA = re.compile(r"([\ue000\ue002])(.*?)[\ue001\ue003]", re.DOTALL)
DISPLAY = formulas.DISPLAY[0]


def read(said: str, *, unfinished: bool = False) -> str:
    """The text as a browser shows it, with formulas as their LaTeX in brackets."""
    shown = re.sub(r"<button.*?</button>", "", markdown.html(said, unfinished=unfinished))
    shown = FORMULA.sub(lambda found: f"⟨{found[2]}⟩", shown.replace("<br />", "\n"))
    return html.unescape(re.sub("<[^>]+>", "", shown)).strip()


def found(said: str) -> list[tuple[bool, str]]:
    """The formulas of a text: whether displayed, and their LaTeX."""
    return [(kind == DISPLAY, html.unescape(latex)) for kind, latex in FORMULA.findall(markdown.html(said))]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("- so:\n  ```cpp\n  if (a < b && *p) f<int>();\n  ```\n- next", "if (a < b && *p) f<int>();"),
        ("* one\n  * two with `x < y && z`\n  * `&lt;`", "two with x < y && z\n&lt;"),
        ("````md\n```html\n<b>&amp;</b>\n```\n````", "```html\n<b>&amp;</b>\n```"),
        ("~~~\n```\n<b>\n~~~", "```\n<b>"),
        ("1. so:\n\n       a < b && c\n", "a < b && c"),
        ("so:\n\n\tif a < b:\n\t\tc & d", "if a < b:\n\tc & d"),
        ("``a ` <b> & c``", "a ` <b> & c"),
        ("> ```\n> a < b\n> ```", "a < b"),
        ("a < b, a<b, Map<K, V> & `</td>`", "a < b, a<b, Map<K, V> & </td>"),
        ("| `a<b>` | <i> |\n|---|---|\n| x & y | `&amp;` |", "x & y\n&amp;"),
        ("```\n\n\n  kept\n\n```", "kept"),
        ("a\nb", "a\n\nb"),
        ("<details><summary>x</summary></details>", "<details><summary>x</summary></details>"),
        ("- [ ] todo <b>", "todo <b>"),
        ("%%%LATEX_BLOCK_0%%% $x$", "%%%LATEX_BLOCK_0%%% ⟨x⟩"),
        ("marks \ue000 x \ue001", "marks \ufffd x \ufffd"),
    ],
)
def test_characters_are_read_as_they_were_written(said: str, shown: str) -> None:
    assert shown in read(said)


@pytest.mark.parametrize("language", ["python", "c++", "html", "no-such-language", '"><b>', "mermaid"])
def test_code_is_the_same_to_the_last_character_whatever_its_language(language: str) -> None:
    code = "\n\n  <a href='x'>&amp;</a>\t# \\(y\\) $z$\n    if a<b && c: pass  \n\n"
    shown = markdown.html(f"```{language}\n{code}\n```")
    inside = re.search(r"<pre><code[^>]*>(.*)</code></pre>", shown)
    assert inside and html.unescape(re.sub("<[^>]+>", "", inside[1])) == f"{code}\n"


@pytest.mark.parametrize(
    "said",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "a\n\n<iframe src='https://x.y'></iframe>\n",
        "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](&#106;avascript:alert(1)) <javascript:alert(1)>",
        "[a](data:text/html,<script>alert(1)</script>) ![b](data:image/svg+xml,<svg/onload=alert(1)>)",
        "[a](vbscript:x) [b](file:///etc/passwd) [c](/gradio_api/info) [d][1]\n\n[1]: javascript:alert(1)",
        '[a](https://x.y "><img src=x onerror=alert(1)>")',
        "$\\text{<img src=x onerror=alert(1)>}$ and \\[<script>alert(1)</script>\\]",
        '```"><script>alert(1)</script>\n</code></pre><script>alert(1)</script>\n```',
        "| <svg onload=alert(1)> |\n|---|\n| <style>*{}</style> |",
        "![<img src=x onerror=alert(1)>](https://x.y/a.png) https://x.y/<script>",
        "```mermaid\ngraph TD; A[<img src=x onerror=alert(1)>]\n```",
        "<!-- --><!--said:AAAA--> <form action=x><input name=y></form>",
        "\ue000<img src=x onerror=alert(1)>\ue001",
    ],
)
@pytest.mark.parametrize("unfinished", [False, True])
def test_markup_of_an_answer_is_never_live(said: str, unfinished: bool) -> None:
    shown = markdown.html(said, unfinished=unfinished)
    elements = set(re.findall(r"<([a-z0-9]+)", shown))
    ours = {"p", "a", "br", "code", "pre", "div", "table", "thead", "tbody", "tr", "th", "td", "span", "h2"}
    assert elements <= ours | {"button", "svg", "path"}
    for tag in re.findall(r"<[a-z][^>]*>", shown):
        names = re.findall(r'\s([a-zA-Z-]+)(?==")', re.sub(r'"[^"]*"', '""', tag))
        assert not [name for name in names if name.startswith("on") or name == "src"], tag
    assert all(url.startswith("https://") for url in re.findall(r'href="([^"]*)"', shown))


def test_links_lead_to_the_web_in_another_tab() -> None:
    shown = markdown.html(
        "[a](https://x.y/z) <https://a.b> see https://c.d/e_f_(g). mailto:x [m](mailto:a@b.c) http:// ![i](https://p.q)"
    )
    assert re.findall(r'href="([^"]*)"', shown) == [
        "https://x.y/z",
        "https://a.b",
        "https://c.d/e_f_(g)",
        "mailto:a@b.c",
        "https://p.q",
    ]
    assert shown.count('target="_blank" rel="noopener noreferrer"') == 5 and "<img" not in shown


@pytest.mark.parametrize(
    ("said", "formula"),
    [
        ("so $$x^2$$ is", [(True, "x^2")]),
        (r"so \[x^2\] is", [(True, "x^2")]),
        ("so $x^2$ is", [(False, "x^2")]),
        (r"so \( x_1 * y_1 \) is", [(False, "x_1 * y_1")]),
        ("$$\nx_1\n- y_1\n= z\n$$", [(True, "x_1\n- y_1\n= z")]),
        ("text\n\\[\na & b \\\\[2pt]\n# c\n\\]\nmore", [(True, "a & b \\\\[2pt]\n# c")]),
        ("- item\n  \\[\n  a\n\n  b\n  \\]\n- \\(c\\)", [(True, "a\n\nb"), (False, "c")]),
        ("> $$a<b$$", [(True, "a<b")]),
        ("| $a$ | \\(b\\) |\n|---|---|\n| $$c$$ | \\[d\\] |", [(False, "a"), (False, "b"), (True, "c"), (True, "d")]),
        (
            "**$x$** # $n$th, $2x$, $3 \\times 4$, $5$, ($y$)",
            [(False, each) for each in ("x", "n", "2x", r"3 \times 4", "5", "y")],
        ),
        (r"\[ \text{costs \$5 or $y$} \]", [(True, r"\text{costs \$5 or $y$}")]),
        ("\\[ x \\].", [(True, "x .")]),
    ],
)
def test_formulas_of_all_delimiters_are_found(said: str, formula: list[tuple[bool, str]]) -> None:
    assert found(said) == formula


@pytest.mark.parametrize(
    "said",
    [
        "It costs $5 and $10.",
        "from $5-$10, US$5 to CA$6, $1,000/$2,000",
        "between $5 or 10$ a day, 20 $ and 30 $",
        "$HOME/$USER and $PATH",
        "$ 5 $ and $$",
        "`$x$` and `\\(y\\)` and ``\\[z\\]``",
        "```\n$$x$$ \\[y\\]\n```",
        "    $x$ \\(y\\)",
        "a \\$x\\$ b",
        "\\\\(x\\\\)",
        "\\( never closed, $$ nor this",
        "\\[ open {{ \\] and $}$",
        "\\[ open\n```\n\\]\n```",
    ],
)
def test_prices_code_and_what_is_never_closed_are_no_formulas(said: str) -> None:
    assert found(said) == []


GROWING = [
    "# Title\n\nText with `__code__`, **bold**, *it*, ~~no~~, [a](https://x.y).\n\n- one\n- two\n\n---\n\nEnd <b>.",
    "Text:\n- one `a * b * c`\n  ```py\n  x = a * b\n  ```\n- **two**\n\n1. first\n2. second\n10. tenth\n",
    "````md\n```\n# x\n```\n````\n\n> quote\n\n~~~\n- a\n~~~\n",
    "Before\n\n| a | b |\n|---|--:|\n| 1 | `2` |\n| *3* | 4 |\n\nAfter\n",
    "So \\( a_1 * b_1 * c \\) and $x_1 * y_1 * z$ cost $5.\n\n\\[\nx\n- y\n= z\n\\]\n\n$$\n# a\n$$\n\nEnd",
    "- item:\n  \\[\n  x\n  - y\n  \\]\n- next `__init__` and $$a*b*c$$ end",
    "- [ ] todo\n- [x] done &amp; *more*",
]


@pytest.mark.parametrize("said", GROWING)
def test_no_markup_comes_and_goes_while_an_answer_grows(said: str) -> None:
    """At every length: blocks in the order of the whole answer, and inline markup only that it has in the end."""
    whole = markdown.html(said)
    blocks, kinds = _blocks(whole), set(re.findall(r"<([a-z0-9]+)", whole))
    for length in range(len(said)):
        shown = markdown.html(said[:length], unfinished=True)
        shown = re.sub(r'(\n\n)?<p class="unfinished">.*', "", shown)
        assert _blocks(shown) == blocks[: len(_blocks(shown))], said[:length]
        assert set(re.findall(r"<([a-z0-9]+)", shown)) <= kinds, said[:length]
        for tag in ("em", "strong", "code", "a", "h1", "th"):
            inside = [re.sub("<[^>]+>", "", each) for each in re.findall(rf"<{tag}[ >].*?</{tag}>", shown)]
            ends = [re.sub("<[^>]+>", "", each) for each in re.findall(rf"<{tag}[ >].*?</{tag}>", whole)]
            assert all(any(end.startswith(each.rstrip()) for end in ends) for each in inside), said[:length]


def _blocks(shown: str) -> list[str]:
    return [re.findall(r"<([a-z0-9]+)", each)[0] for each in shown.split("\n\n") if each]


@pytest.mark.parametrize("said", GROWING)
def test_what_is_held_back_of_a_growing_answer_is_little_and_comes_with_the_next_words(said: str) -> None:
    for length in range(len(said)):
        assert (
            len(re.findall("[a-z]{3,}", read(said[:length])))
            - len(re.findall("[a-z]{3,}", read(said[:length], unfinished=True)))
            <= 3
        )


@pytest.mark.parametrize("said", ["plain", "<think>a</think>b", '`<b>` & "quotes" --> é 😀\n\n$x$', "a\r\nb"])
def test_what_was_said_goes_with_its_message_for_the_copy_button(said: str) -> None:
    content = conversation.user(said)["content"]
    found = re.findall(r"<!--said:([A-Za-z0-9+/=]*)-->", content)
    assert [base64.b64decode(each).decode() for each in found] == [said]


@pytest.mark.parametrize(
    ("said", "reasoning", "shown"),
    [
        ("<think>\nhm\n</think>\n\nso", "", [("hm", "done"), ("so", None)]),
        ("hm\nhm\n</think>\n\nso", "", [("hm\nhm", "done"), ("so", None)]),
        ("so", "hm", [("hm", "done"), ("so", None)]),
        ("a\n<think>b</think>\nc", "", [("a", None), ("b", "done"), ("c", None)]),
        ("write `<think>` and </think>", "", [("write <think> and </think>", None)]),
        ("```\n<think>\nx\n</think>\n```", "", [("<think>\nx\n</think>", None)]),
    ],
)
def test_reasoning_is_apart_from_the_answer(said: str, reasoning: str, shown: list[tuple[str, str | None]]) -> None:
    messages = conversation.answer(said, reasoning)
    statuses = [message.get("metadata", {}).get("status") for message in messages]
    assert statuses == [status for _, status in shown]
    for message, (text, _) in zip(messages, shown, strict=True):
        visible = re.sub(
            "<[^>]+>", "", re.sub(r"<button.*?</button>", "", message["content"].replace("<br />&#10;", "\n"))
        )
        assert html.unescape(visible).strip() == text


@pytest.mark.parametrize(("said", "reasoning"), [("<think>\nhm", ""), ("", "hm")])
def test_reasoning_that_still_grows_is_pending(said: str, reasoning: str) -> None:
    (message,) = conversation.answer(said, reasoning, unfinished=True)
    assert message["metadata"]["status"] == "pending"
    assert conversation.answer(said, reasoning)[0]["metadata"]["status"] == "done"


def test_a_stopped_answer_is_shown_to_its_end() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "see `x`", "reasoning": "hm"}]
    asked = conversation.user("q")
    growing = [asked, *conversation.answer("see `x`", "hm", unfinished=True)]
    assert conversation.finished(growing, turns) == [asked, *conversation.answer("see `x`", "hm")]
    failed = [asked, conversation.failure(ServeError("w", "what", "fix"), "No answer")]
    assert conversation.finished(failed, turns[:1]) == failed
