"""Tokens of an answer with their probabilities: as servers send them, as whole characters, as HTML, on the page."""

import math
from typing import Any

import pytest
from serve_helpers import Chat, browser, chat, fake, until

from serve import client, token_logprobs
from serve.chat_page.markup import scales, tokens
from serve.token_logprobs import Token

__all__ = ["browser"]  # a fixture

ASKED = [{"role": "user", "content": "What is a list?"}]


def made(*said: tuple[bytes, float]) -> list[Token]:
    return [Token(data, logprob) for data, logprob in said]


def test_a_token_is_read_with_its_bytes_or_with_its_text() -> None:
    rows: list[Any] = [
        {"token": "a", "logprob": -0.5, "bytes": [97]},
        {"token": "é", "logprob": 0},
        {"token": "bytes:\\xc3", "logprob": -1e30, "bytes": [0xC3]},
    ]
    assert token_logprobs.read({"logprobs": {"content": rows}}) == (
        Token(b"a", -0.5, "bytes:61"),
        Token("é".encode(), 0.0, "bytes:c3a9"),
        Token(b"\xc3", -9999.0, "bytes:c3"),
    )


@pytest.mark.parametrize(
    "sent",
    [None, [], 3, {"content": None}, {"content": "x"}, {"content": [None, 3, {}, {"token": "a"}]},
     {"tokens": ["a"], "token_logprobs": [-1]}, {"content": [{"token": "a", "logprob": math.nan}]},
     {"content": [{"token": "a", "logprob": True}]}],
)  # fmt: skip
def test_what_is_no_log_probability_is_none(sent: Any) -> None:
    assert token_logprobs.read({"logprobs": sent}) == ()


def test_halves_of_a_character_are_joined() -> None:
    cat = "🐈".encode()
    pieces = tokens.joined(made((b"a", -0.1), (cat[:2], -1.0), (cat[2:], -0.5), (b" b", -0.2)))
    assert pieces == [tokens.Piece("a", (-0.1,)), tokens.Piece("🐈", (-1.0, -0.5)), tokens.Piece(" b", (-0.2,))]


def test_a_token_without_text_belongs_to_the_next_one() -> None:
    """vLLM sends no text for the first tokens of a character, and all of it with the last."""
    pieces = tokens.joined(made((b"", -1.0), (b"", -2.0), ("🐈".encode(), -0.5), (b"", -0.1)))
    assert pieces == [tokens.Piece("🐈", (-1.0, -2.0, -0.5)), tokens.Piece("", (-0.1,))]


def test_what_is_no_character_does_not_swallow_the_rest() -> None:
    pieces = tokens.joined(made((b"\xff", -1.0), (b"\xf0\x9f", -1.0), (b"ok", -1.0), (b"\xe2", -2.0)))
    assert [piece.text for piece in pieces] == ["\ufffd", "\ufffdok", "\ufffd"]
    assert sum(len(piece.logprobs) for piece in pieces) == 4


def test_pieces_are_written_and_read_again() -> None:
    pieces = [tokens.Piece('a"\n🐈', (-0.25, -1.5)), tokens.Piece("", (0.0,))]
    assert tokens.read(tokens.written(pieces)) == tokens.Coloured(tuple(pieces))
    assert tokens.written([]) == "" and tokens.read("") == tokens.Coloured()


@pytest.mark.parametrize(
    "line",
    ["x", "3", "{}", "[3]", '["a"]', '[["a"]]', "[[1,-1]]", '[["a","b"]]', '[["a",1]]', '[["a",NaN]]',
     '[["a",-1e999]]', '[["a",true]]', "[" * 100_000],
)  # fmt: skip
def test_what_a_browser_kept_of_tokens_is_checked(line: str) -> None:
    assert tokens.read(line) == tokens.Coloured()


def test_a_token_is_text_and_one_line() -> None:
    said = "<img src=x onerror=alert(1)>\n\n%%% \ue000x\ue001 \"'</div>\u202e"
    shown = tokens.html(tokens.Coloured((tokens.Piece(said, (-0.1,)),)))
    assert "<img" not in shown and "\n" not in shown and "%%%" not in shown and "\ue000" not in shown
    assert "\u202e" not in shown and shown.count("</div>") == 2
    assert "&lt;img src=x onerror=alert(1)&gt;↵&#10;↵&#10;" in shown


@pytest.mark.parametrize(
    ("probability", "number", "words"),
    [(1.0, 0, "100 &#37;"), (0.9, 0, "90 &#37;"), (0.89, 1, "89 &#37;"), (0.3, 2, "30 &#37;"), (0.1, 3, "10 &#37;"),
     (0.049, 4, "4.9 &#37;"), (1e-9, 4, "below 0.01 &#37;")],
)  # fmt: skip
def test_the_colour_and_the_words_say_the_probability(probability: float, number: int, words: str) -> None:
    shown = tokens.html(tokens.Coloured((tokens.Piece("x", (math.log(probability) + 1e-12 * (probability < 1),)),)))
    assert f'<span class="t{number}" tabindex="0" title="{words}, log-probability ' in shown


def test_one_token_can_be_reached_by_the_tab_key() -> None:
    shown = tokens.html(tokens.Coloured((tokens.Piece("x", (-0.1,)), tokens.Piece("y", (-0.1, -0.2)))))
    assert shown.count('tabindex="0"') == shown.count('tabindex="-1"') == 1
    assert "2 tokens make this text: 90.5 &#37;, 81.9 &#37;" in shown


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(
    ("scale", "paper"),
    [
        (scales.PROBABILITY.light, "#ffffff"),
        (scales.PROBABILITY.dark, "#0f172a"),
        (scales.KL.light, "#ffffff"),
        (scales.KL.dark, "#0f172a"),
    ],
)
def test_the_scale_is_read_by_lightness_alone_and_so_is_its_text(scale: Any, paper: str) -> None:
    grounds = [luminance(background or paper) for background, _ in scale]
    assert grounds in (sorted(grounds), sorted(grounds, reverse=True)) and len(set(grounds)) == len(grounds)
    for ground, (_, text) in zip(grounds, scale, strict=True):
        dark, light = sorted((ground, luminance(text)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, text


LOGPROBS = {"A ": -0.01, "list ": -0.6, "<b>holds</b> ": -2.0, "\U0001f408": -0.6, "items": -4.0}


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    """Of one model, what it says with log-probabilities, and one token without text before the cat, as vLLM does."""
    return {"says": {"sure": [*LOGPROBS]}, "logprobs": {"sure": LOGPROBS}, "models": ["sure", "silent-about-it"]}


def sequence(page: Chat, which: str = "") -> list[tuple[str, str]]:
    """The tokens as they are read, each with its class."""
    all_spans = page.tab.locator(f"#chat{which} .tokens .sequence span")
    return [tuple(each) for each in all_spans.evaluate_all("all => all.map(one => [one.className, one.textContent])")]


@pytest.mark.browser
def test_tokens_are_coloured_where_it_is_asked_for_and_nothing_else_changes(browser: Any, answers: Any) -> None:
    with chat(browser, **answers) as (page, server):
        page.say("Before?")
        until(lambda: "tokens/s" in page.status() and page.can_send())
        assert "logprobs" not in server.requests[0] and page.tab.locator(".tokens").count() == 0
        page.choose("colour", "probability")
        page.say("What is a list?")
        until(lambda: page.tab.get_by_text("Token by token").count() and page.can_send())
        assert server.requests[1]["logprobs"] is True
        page.tab.get_by_text("Token by token").click()
        until(lambda: page.tab.locator(".tokens .sequence").is_visible())
        assert [name for name, _ in sequence(page)] == ["t0", "t1", "t3", "t2", "t4"]
        assert "".join(text for _, text in sequence(page)) == "".join(LOGPROBS)
        token = page.tab.locator(".tokens .sequence span")
        assert "2 tokens make this text" in str(token.nth(3).get_attribute("title"))
        token.first.focus()
        page.tab.keyboard.press("ArrowRight")
        assert page.tab.evaluate("document.activeElement.title").startswith("54.9 %, log-probability -0.600")
        page.say("More?")
        until(lambda: len(server.requests) == 3)
        said = [each["content"] for each in server.requests[2]["messages"]]
        assert said == ["Before?", "".join(LOGPROBS), "What is a list?", "".join(LOGPROBS), "More?"]
        assert page.trouble == []


@pytest.mark.browser
def test_both_of_two_models_show_it_and_one_without_says_so(browser: Any, answers: Any) -> None:
    with chat(browser, **answers) as (page, _server):
        page.choose("compare", "silent-about-it")
        until(lambda: page.tab.locator("#chat-b").count())
        page.choose("colour", "probability")
        page.say("What is a list?")
        until(lambda: page.tab.locator("#difference p").count() and page.can_send())
        until(lambda: "the server sent no log-probabilities" in page.status("-b"))
        assert "log-probabilities" not in page.status() and "A list holds items" in page.said("-b")
        assert page.tab.get_by_text("Token by token").count() == 1
        until(lambda: page.tab.evaluate("Object.values(localStorage).join('').length") > 500)
        page.tab.reload()
        until(lambda: page.tab.get_by_text("Token by token").count())
        until(lambda: page.tab.locator("#colour input").input_value() == "probability", 5)


def test_a_server_that_takes_no_logprobs_is_asked_without() -> None:
    with fake(refuses={"logprobs": (403, {"error": {"message": "You are not allowed to request logprobs"}})}) as server:
        pieces = list(client.stream(server.url, "steady", ASKED, temperature=0, max_tokens=8, logprobs=True))
    assert ["logprobs" in each for each in server.requests] == [True, False]
    assert "".join(piece.text for piece in pieces).startswith("A list") and not any(each.logprobs for each in pieces)


def test_pieces_carry_the_tokens_that_they_came_in(answers: Any) -> None:
    with fake(**answers) as server:
        pieces = list(client.stream(server.url, "sure", ASKED, temperature=0, max_tokens=8, logprobs=True, top_p=0.5))
        sent = server.requests[0]
        assert (sent["logprobs"], sent["top_p"]) == (True, 0.5)
    said = [token for piece in pieces for token in piece.logprobs]
    assert [token.data.decode() for token in said] == ["A ", "list ", "<b>holds</b> ", "", "\U0001f408", "items"]
    assert "".join(piece.text for piece in pieces) == "".join(LOGPROBS)
