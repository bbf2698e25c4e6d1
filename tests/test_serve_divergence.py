"""KL between the models of two answers: its bound, what servers send for it, where it is known, how it is shown."""

import asyncio
import json
import math
import random
from typing import Any

import pytest
from serve_helpers import Chat, browser, chat, fake, until

from hubplugin.errors import ServeError
from serve import client, scoring, token_divergence, token_logprobs
from serve.chat_page.markup import tokens
from serve.chat_page.turns import divergence, turn
from serve.chat_page.turns.side import Settings, Side
from serve.token_logprobs import Token

__all__ = ["browser"]  # a fixture


def logs(**probabilities: float) -> dict[str, float]:
    return {name: math.log(each) for name, each in probabilities.items()}


@pytest.mark.parametrize(
    ("own", "other", "kl"),
    [
        (logs(a=0.5, b=0.5), logs(a=0.5, b=0.5), 0.0),
        (logs(a=0.5, b=0.5), logs(a=0.25, b=0.75), 0.5 * math.log(4 / 3)),  # .5 ln 2 + .5 ln 2/3
        (logs(a=0.5), logs(a=0.25), 0.5 * math.log(4 / 3)),  # the same: what is left of 1 is one token more
        (logs(a=0.5, b=0.25), logs(a=0.25, c=0.25), 0.5 * math.log(4 / 3)),  # of b and c one model says nothing
        (logs(a=0.75, b=0.125), logs(a=0.25, b=0.5), 0.75 * math.log(3) - 0.125 * math.log(4) - 0.125 * math.log(2)),
        (logs(a=1.0), logs(a=0.5), math.log(2)),
    ],
)  # fmt: skip
def test_the_bound_by_hand(own: dict[str, float], other: dict[str, float], kl: float) -> None:
    assert token_divergence.at_least(own, other) == pytest.approx(kl, abs=1e-12)


def test_without_a_token_of_both_nothing_is_known() -> None:
    assert token_divergence.at_least(logs(a=0.5), logs(b=0.5)) is None
    assert token_divergence.at_least({}, {}) is None


def test_rounded_numbers_give_no_negative_and_no_infinite_bound() -> None:
    whole = {"a": -0.6931471, "b": -0.6931471}  # together a little more than 1
    assert token_divergence.at_least(whole, whole) == 0.0
    assert 0 < token_divergence.at_least({"a": -0.7}, {"a": 0.0}) < 10  # type: ignore[operator]
    assert token_divergence.at_least({"a": 0.0}, {"a": -9999.0}) == pytest.approx(9999)


@pytest.mark.parametrize("likeliest", [1, 3, 20])
def test_it_is_never_more_than_the_kl_of_the_whole_vocabulary(likeliest: int) -> None:
    draw = random.Random(likeliest)
    for _ in range(200):
        both = [[draw.expovariate(1) ** draw.uniform(0.5, 4) + 1e-9 for _ in range(50)] for _ in range(2)]
        own, other = ([each / sum(side) for each in side] for side in both)
        true = sum(p * math.log(p / q) for p, q in zip(own, other, strict=True))
        top = [
            {str(at): math.log(side[at]) for at in sorted(range(50), key=side.__getitem__)[-likeliest:]}
            for side in (own, other)
        ]
        bound = token_divergence.at_least(*top)
        assert bound is None or 0 <= bound <= true + 1e-9
    every = [{str(at): math.log(each) for at, each in enumerate(side)} for side in (own, other)]
    assert token_divergence.at_least(*every) == pytest.approx(true, rel=1e-9)


def test_the_likeliest_tokens_are_read_with_what_tells_them_apart() -> None:
    numbered = [{"token": "token_id:7", "logprob": -1.0, "bytes": [120]}, {"token": "token_id:9", "logprob": -0.5}]
    row: dict[str, Any] = {"token": "token_id:7", "logprob": -1.0, "bytes": [97], "top_logprobs": numbered}
    (token,) = token_logprobs.read({"logprobs": {"content": [row]}})
    assert (token.data, token.number, dict(token.likeliest)) == (b"a", 7, {"token_id:7": -1.0, "token_id:9": -0.5})
    (token,) = token_logprobs.read({"logprobs": {"content": [{**row, "top_logprobs": numbered[1:]}]}})
    assert token.likeliest.keys() == {"token_id:7", "token_id:9"}  # the one that was chosen is among them
    by_text = [{"token": "a", "logprob": -1, "bytes": [97]}, *({"token": "\ufffd", "logprob": -1} for _ in range(2))]
    twice = [*by_text, {"token": "b", "logprob": -2}, {"token": "b", "logprob": -3}, {"token": "c", "logprob": "x"}]
    (token,) = token_logprobs.read({"logprobs": {"content": [{**by_text[0], "top_logprobs": twice}]}})
    assert (token.number, dict(token.likeliest)) == (None, {"bytes:61": -1.0})
    (token,) = token_logprobs.read({"logprobs": {"content": [{"id": 3, "token": "a", "logprob": -1}]}})
    assert token.number == 3 and token.likeliest == {}


@pytest.mark.parametrize(
    "sent",
    ["x", "[]", '{"choices": []}', '{"choices": [{}]}', '{"choices": [{"prompt_logprobs": [null]}]}',
     '{"choices": [{"prompt_logprobs": [null, null, null]}]}', '{"choices": [{"prompt_logprobs": [{"8": {}}, {}]}]}'],
)  # fmt: skip
def test_a_server_that_scores_no_text_is_told_from_one_that_does(sent: str) -> None:
    with pytest.raises(ServeError, match="does not score"):
        scoring.read(sent.encode(), [8, 9], "here")


def test_the_score_of_a_text_is_that_of_its_end() -> None:
    rows = [None, {"8": {"logprob": -1.0}}, {"9": {"logprob": -2.5, "decoded_token": "b"}, "4": {"logprob": -0.5}}]
    (scored,) = scoring.read(json.dumps({"choices": [{"prompt_logprobs": rows}]}).encode(), [9], "here")
    assert scored.likeliest == {"token_id:9": -2.5, "token_id:4": -0.5} and scored.logprob == -2.5
    assert scored == scoring.Scored(9, {9: -2.5, 4: -0.5}, "b")


# Both say "A list" and go on with another word, and with one that only the first says.
MODELS = ["org/base", "me/small"]
SAYS = {"org/base": ["A ", "list ", "holds ", "items."], "me/small": ["A ", "list ", "keeps "]}
LIKELIEST = {
    "org/base": {
        "A ": logs(**{"A ": 0.5, "The ": 0.25}),
        "list ": logs(**{"list ": 0.5}),
        "holds ": logs(**{"holds ": 0.75, "keeps ": 0.125}),
        "keeps ": logs(**{"holds ": 0.75, "keeps ": 0.125}),
        "items.": logs(**{"items.": 0.5}),
    },
    "me/small": {
        "A ": logs(**{"A ": 0.5, "The ": 0.25}),
        "list ": logs(**{"list ": 0.25}),
        "holds ": logs(**{"holds ": 0.25, "keeps ": 0.5}),
        "keeps ": logs(**{"holds ": 0.25, "keeps ": 0.5}),
        "items.": logs(**{"items.": 0.5}),
    },
}
LOGPROBS = {model: {word: each[word] for word, each in words.items()} for model, words in LIKELIEST.items()}
SERVED: dict[str, Any] = {"models": MODELS, "says": SAYS, "logprobs": LOGPROBS, "likeliest": LIKELIEST}
VOCABULARY = ["<s>", "<user>", "A ", "The ", "list ", "holds ", "keeps ", "items."]
HALF = 0.5 * math.log(4 / 3)
HALF_BACK = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
THERE = 0.75 * math.log(3) - 0.125 * math.log(4) - 0.125 * math.log(2)
BACK = 0.25 * math.log(1 / 3) + 0.5 * math.log(4) + 0.25 * math.log(2)


def measured(histories: Any = ([], []), **settings: Any) -> tuple[list[tuple[Any, str]], Any]:
    """The KL of both sides' tokens with what is said of it, after one question to both; and the server."""
    with fake(**{**SERVED, **settings}) as server:
        sides = asked(server.url, *(Side(name, [], turns) for name, turns in zip(MODELS, histories, strict=True)))
    return [(list(side.kl), side.note) for side in sides], server


def asked(url: str, *sides: Side) -> tuple[Side, ...]:
    async def ask() -> None:
        async for _ in turn.answer(url, None, "What is a list?", sides, Settings("", 0.0, 20, colour=tokens.KL)):
            pass

    asyncio.run(ask())
    return sides


def test_an_answer_is_given_to_the_other_model_where_the_server_scores_texts() -> None:
    (left, right), server = measured(vocabulary=VOCABULARY)
    assert left[0] == pytest.approx([0.0, HALF, THERE, 0.0]) and right[0] == pytest.approx([0.0, HALF_BACK, BACK])
    assert left[1].startswith("KL(org/base ‖ me/small): me/small was given this answer token by token. ")
    assert left[1].endswith("the KL is this or more.")
    asked = [each for each in server.requests if "prompt" in each]
    assert {each["model"]: each["prompt"] for each in asked} == {
        "me/small": [0, 1, 2, 4, 5, 7],
        "org/base": [0, 1, 2, 4, 6],
    }
    assert all(each["prompt_logprobs"] == 20 and each["max_tokens"] == 1 for each in asked)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "the server does not number its tokens"),
        ({"vocabulary": VOCABULARY, "scores": False}, "no completions here"),
    ],
)
def test_elsewhere_it_is_known_up_to_the_first_token_that_differs(settings: Any, why: str) -> None:
    (left, right), server = measured(**settings)
    assert left[0] == pytest.approx([0.0, HALF, THERE]) and right[0] == pytest.approx([0.0, HALF_BACK, BACK])
    assert "up to the first token that differs" in left[1] and why in left[1]
    assert len([each for each in server.requests if "prompt" in each]) == 2 * bool(settings)


def test_after_other_answers_the_texts_differ_from_the_start() -> None:
    before = [{"role": "user", "content": "Hello?"}]
    histories = (
        [*before, {"role": "assistant", "content": "Hi."}],
        [*before, {"role": "assistant", "content": "Yes."}],
    )
    for side in measured(histories=histories)[0]:
        assert side[0] == [] and "were not asked the same text" in side[1]
    for side in measured(histories=histories, vocabulary=VOCABULARY)[0]:
        assert None not in side[0] and side[0]


def test_a_server_without_the_likeliest_tokens_and_models_of_other_tokens_have_no_kl() -> None:
    refused = (400, {"error": {"message": "Unsupported parameter: top_logprobs"}})
    for side in measured(refuses={"top_logprobs": refused})[0]:
        assert side == ([], divergence.NO_LIKELIEST)
    own = divergence.Answered("a", [], (1,), (Token(b"list", -1.0, "token_id:4", {"token_id:4": -1.0}),))
    for text in (" holds", "\ufffd", ""):  # another token, and one that may be another
        said = [scoring.Scored(4, {4: -1.0}, text)]
        assert divergence._scored(own, own, said) == ([], divergence.DIFFERENT_TOKENS)


def test_a_long_text_is_scored_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LONGEST", 4)
    (left, _), server = measured(vocabulary=VOCABULARY)
    assert left[0] == pytest.approx([0.0, HALF]) and divergence.TOO_LONG in left[1]
    assert all(len(each["prompt"]) == 4 for each in server.requests if "prompt" in each)


def test_one_model_and_a_broken_answer_say_why_there_is_no_kl() -> None:
    with fake(**SERVED) as server:
        (alone,) = asked(server.url, Side("org/base", [], []))
        whole, _broken = asked(server.url, Side("org/base", [], []), Side("status-500", [], []))
    assert (alone.note, whole.note) == (divergence.ALONE, divergence.UNFINISHED)
    assert tokens.read(alone.tokens).by == tokens.PROBABILITY and tokens.read(alone.tokens).note == divergence.ALONE


def test_keys_that_a_server_does_not_know_are_left_out_one_after_the_other() -> None:
    async def ask(url: str) -> list[client.Piece]:
        asked = client.astream(
            url, "steady", [{"role": "user", "content": "?"}], temperature=0, max_tokens=8, likeliest=20
        )
        return [piece async for piece in asked]

    keys = ("return_token_ids", "return_tokens_as_token_ids", "top_logprobs", "logprobs")
    with fake(refuses={key: (422, {"error": {"message": f"unknown key {key!r}"}}) for key in keys}) as server:
        pieces = asyncio.run(ask(server.url))
    assert "".join(piece.text for piece in pieces).startswith("A list")
    assert server.requests[-1].keys().isdisjoint(keys) and len(server.requests) == 5


def test_kl_is_written_kept_and_added_up_where_tokens_make_one_text() -> None:
    cat = "🐈".encode()
    said = [Token(b"a", -0.1), Token(cat[:2], -1.0), Token(cat[2:], -0.5), Token(b"b", -0.2), Token(b"c", -0.3)]
    pieces = tokens.joined(said, [0.0, 0.25, 0.5, 1.0])
    assert [piece.kl for piece in pieces] == [0.0, 0.75, 1.0, None]
    kept = tokens.read(tokens.written(pieces, "Why <b>."))
    assert kept == tokens.Coloured(tuple(pieces), "Why <b>.") and kept.by == tokens.KL
    shown = tokens.html(kept)
    assert [name in shown for name in ('"k0"', '"k3"', '"unknown"')] == [True] * 3
    assert "Why &lt;b&gt;." in shown and "KL at least 0.75 nats; " in shown and "KL not known" in shown
    assert tokens.read(tokens.written(tokens.joined(said), "Why.")).by == tokens.PROBABILITY


@pytest.mark.parametrize(
    "line",
    ['{"rows":[["a",-1]],"kl":[1,2],"note":"x"}', '{"rows":[["a",-1]],"kl":[-1],"note":"x"}', '{"note":"x"}',
     '{"rows":[["a",-1]],"kl":["x"],"note":"x"}', '{"rows":[["a",-1]],"kl":[NaN],"note":"x"}',
     '{"rows":[["a",-1]],"kl":3,"note":"x"}', '{"rows":[["a",-1]],"kl":[1],"note":3}'],
)  # fmt: skip
def test_what_a_browser_kept_of_kl_is_checked(line: str) -> None:
    assert tokens.read(line) == tokens.Coloured()


def classes(page: Chat, which: str = "") -> list[str]:
    spans = page.tab.locator(f"#chat{which} .tokens .sequence span")
    return list(spans.evaluate_all("all => all.map(one => one.className)"))


def compared(page: Chat) -> None:
    page.choose("compare", "me/small")
    until(lambda: page.tab.locator("#chat-b").count())
    page.choose("colour", "KL to the other model")
    page.say("What is a list?")
    until(lambda: page.tab.get_by_text("how far the models are").count() == 2 and page.can_send())


@pytest.mark.browser
def test_tokens_are_coloured_by_kl_and_are_there_again_after_a_reload(browser: Any) -> None:
    with chat(browser, **SERVED, vocabulary=VOCABULARY) as (page, _server):
        compared(page)
        assert "After 2 words the answers differ" in page.tab.locator("#difference").inner_text()
        assert page.tab.locator("#chat mark").all_inner_texts() == ["holds"]
        until(lambda: page.tab.evaluate("Object.values(localStorage).join('').length") > 500)
        for _ in range(2):
            page.tab.get_by_text("how far the models are").first.click()
            fold = page.tab.locator("#chat .tokens")
            until(fold.is_visible)
            page.tab.get_by_text("how far the models are").last.click()
            until(page.tab.locator("#chat-b .tokens").is_visible)
            assert (classes(page), classes(page, "-b")) == (["k0", "k2", "k3", "k0"], ["k0", "k2", "k3"])
            assert "KL of each token, at least, in nats:" in fold.inner_text()
            assert "me/small was given this answer token by token" in fold.inner_text()
            page.tab.reload()
            page.until_ready()
            until(lambda: page.tab.get_by_text("how far the models are").count() == 2)
            until(lambda: page.tab.locator("#colour input").input_value() == "KL to the other model", 5)
        assert page.trouble == []


@pytest.mark.browser
def test_what_tokens_are_coloured_by_is_chosen_by_keys_and_named_for_screen_readers(browser: Any) -> None:
    with chat(browser, **SERVED) as (page, _server):
        assert 'combobox "Colour tokens by": nothing' in page.tab.locator("#colour").aria_snapshot()
        page.tab.locator("#colour input").focus()
        for key in ("ArrowDown", "Enter"):
            page.tab.keyboard.press(key)
        until(lambda: page.tab.locator("#colour input").input_value() == "probability")
        page.say("What is a list?")
        until(lambda: page.tab.get_by_text("how sure the model was").count() and page.can_send())
