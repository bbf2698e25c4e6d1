"""Two models on the chat page: what their reports say, one prompt for both, and where their answers differ."""

from typing import Any

import pytest
from serve_helpers import WORDS, Chat, browser, chat, fake, until

from serve.catalogue import Listed
from serve.chat_page import about, app, conversation

__all__ = ["browser"]  # a fixture

MODELS = ["org/base", "me/small"]
FACTS = {
    "me/small": {
        "parent": "org/base",
        "bytes": 8_812_345,
        "disk_ratio": 2.8125,
        "mean_kl": 0.031271,
        "perplexity_ratio": 1.0213,
        "model_bits_per_weight": 5.12,
        "state": "ready",
    }
}


def marked(first: str, second: str) -> tuple[str, str, int, tuple[str | None, str | None]]:
    """The HTML of two answers' last messages with their marks, the words before, and the first that differ."""
    left, right, found = conversation.compared(conversation.answer(first), conversation.answer(second))
    shown = (
        each[-1]["content"].partition("-->\n\n")[2].replace(' class="differs', ' class="') for each in (left, right)
    )
    return next(shown), next(shown), found.same, found.words


@pytest.mark.parametrize(
    ("first", "second", "same", "left", "right"),
    [
        ("A list holds.", "A list hold.", 2, '<mark class="">holds</mark>', '<mark class="">hold</mark>'),
        ("a **b** c", "a b d", 2, '<mark class="">c</mark>', '<mark class="">d</mark>'),
        ("a b", "a", 1, '<p>a <mark class="">b</mark></p>', '<p>a<mark class=" place"></mark></p>'),
        ("a <b> c", "a <i> c", 1, '&lt;<mark class="">b</mark>&gt;', '&lt;<mark class="">i</mark>&gt;'),
        ("a & b", "a < b", 1, '<mark class="">&amp;</mark>', '<mark class="">&lt;</mark>'),
        ("x $a_1$", "x $a_2$", 1, '<mark class=" place"></mark>\ue000a_1\ue001', '</mark>\ue000a_2\ue001'),
        ("猫は好き", "猫が好き", 1, '猫<mark class="">は</mark>', '猫<mark class="">が</mark>'),
        ("", "a", 0, '<mark class=" place"></mark>', '<mark class="">a</mark>'),
        ("```c\nx = 1\n```", "```c\nx = 2\n```", 1, '<mark class="">1</mark></span>', '<mark class="">2</mark></span>'),
        ("1\n\n- 2", "1\n\n- 2\n- 3", 2, '2<mark class=" place"></mark></li>', '<mark class="">3</mark>'),
    ],
)  # fmt: skip
def test_the_first_different_word_is_marked_in_both(first: str, second: str, same: int, left: str, right: str) -> None:
    shown = marked(first, second)
    assert left in shown[0] and right in shown[1] and shown[2] == same
    assert shown[0].count("<mark") == shown[1].count("<mark") == 1


def test_the_same_words_have_no_mark() -> None:
    assert "<mark" not in "".join(marked("- **a** b", "* a b")[:2])
    assert about.in_common(MODELS, 2, (None, None), literally=True) == "<p>Both answers are the same.</p>"


def test_reasoning_is_not_taken_for_the_answer() -> None:
    left, right, found = conversation.compared(conversation.answer("a b", "a b"), conversation.answer("a b"))
    assert found.same == 0 and "<mark" in left[0]["content"] and "<mark" in right[0]["content"]


def test_what_a_model_says_is_no_markup_in_the_words_about_it() -> None:
    said = about.in_common(["<b>", "x"], 1, ("<i>", None), literally=False)
    assert said == "<p>After one word the answers differ: &lt;b&gt; says “&lt;i&gt;”, x ends.</p>"
    assert "<i>" not in about.head("<i>", [Listed("<i>", parent="<i>", disk_ratio=2.0)], always=True)


def answered(page: Chat, question: str = "What is a list?") -> None:
    """Ask both, and wait for what they have in common."""
    before = page.answers()
    page.say(question)
    until(lambda: page.answers() > before and page.tab.locator("#difference p").count())
    until(page.can_send)


def compare(page: Chat, name: str = "me/small") -> None:
    page.choose("compare", name)
    until(lambda: page.tab.locator("#chat-b").count() and page.tab.locator("#about-b b").count())


def contents(request: dict[str, Any]) -> list[str]:
    return [each["content"] for each in request["messages"]]


@pytest.mark.browser
def test_both_models_are_asked_the_same_and_each_has_its_own_conversation(browser: Any) -> None:
    says = {"me/small": ["A list ", "keeps items."]}
    with chat(browser, models=MODELS, facts=FACTS, says=says) as (page, server):
        compare(page)
        until(lambda: page.tab.locator("#temperature input[type=number]").input_value() == "0")
        assert "at 0, differences come from the models" in page.tab.locator("#temperature").inner_text()
        page.tab.locator("#seed input, #seed textarea").first.fill("7")
        answered(page)
        assert "A list holds items in order." in page.said() and "A list keeps items." in page.said("-b")
        assert page.tab.locator("#chat mark").all_inner_texts() == ["holds"]
        assert page.tab.locator("#chat-b mark").all_inner_texts() == ["keeps"]
        said = page.tab.locator("#difference").inner_text()
        assert said == "After 2 words the answers differ: org/base says “holds”, me/small says “keeps”."
        assert page.tab.locator("#difference").get_attribute("aria-live") == "polite"
        assert "the answers differ from here on: keeps" in page.tab.locator("#chat-b mark").aria_snapshot()
        for which in ("", "-b"):
            assert "tokens/s" in page.status(which) and "first after" in page.status(which)
            assert "seed 7" in page.status(which)
        sent = [
            {key: each[key] for key in ("messages", "temperature", "max_tokens", "seed")} for each in server.requests
        ]
        assert sent[0] == sent[1] and sent[0]["temperature"] == 0 and sent[0]["seed"] == 7
        answered(page, "And a tuple?")
        last = {each["model"]: contents(each) for each in server.requests[2:]}
        assert last["org/base"] == ["What is a list?", "".join(WORDS), "And a tuple?"]
        assert last["me/small"] == ["What is a list?", "A list keeps items.", "And a tuple?"]
        page.choose("compare", "none")
        until(lambda: page.tab.locator("#chat-b").count() == 0)
        until(lambda: page.tab.locator("#temperature input[type=number]").input_value() == "0.7")
        page.say("Alone?")
        until(lambda: len(server.requests) == 5)
        assert server.requests[4]["model"] == "org/base"
        assert page.trouble == []


@pytest.mark.browser
def test_what_the_reports_say_stands_beside_the_names(browser: Any) -> None:
    with chat(browser, models=MODELS, facts=FACTS) as (page, _server):
        until(lambda: page.tab.locator("#about b").count())
        assert page.tab.locator("#about").inner_text() == "org/base\nthe base that others here are made from"
        compare(page)
        assert page.tab.locator("#about-b").inner_text() == (
            "me/small\n8.8 MB · 2.81x smaller than org/base · 5.12 bits per weight"
            " · KL 0.03127 nats per token · perplexity x1.021"
        )


@pytest.mark.browser
def test_one_model_without_a_report_is_the_page_as_it_was(browser: Any) -> None:
    with chat(browser) as (page, server):
        assert page.tab.locator("#compare input").first.input_value() == "none"
        page.say("What is a list?")
        until(lambda: "tokens/s" in page.status())
        assert page.tab.locator("#chat-b, #about b, #difference p, mark").count() == 0
        assert "seed" not in server.requests[0] and "seed" not in page.status()


@pytest.mark.browser
def test_both_answers_grow_at_once_and_stop_ends_both(browser: Any) -> None:
    with chat(browser, models=MODELS, words=["word "] * 10_000, pause=0.02) as (page, server):
        compare(page)
        page.say("Go on.")
        until(lambda: "word word word" in page.said() and "word word word" in page.said("-b"))
        assert len(server.requests) == 2
        page.press("Stop")
        until(lambda: sorted(server.left) == sorted(MODELS))  # both connections are closed
        until(lambda: page.status().startswith("stopped") and page.status("-b").startswith("stopped"))
        until(page.can_send)
        server.words, server.pause = WORDS, 0.0
        answered(page, "Again.")
        assert page.tab.locator("#difference").inner_text() == "Both answers are the same."
        assert all(contents(each)[1].startswith("word word") for each in server.requests[2:])


@pytest.mark.browser
@pytest.mark.parametrize("other", ["dies", "status-500"])
def test_an_error_of_one_is_in_its_column_and_the_other_goes_on(browser: Any, other: str) -> None:
    with chat(browser, models=["steady", other], pause=0.1) as (page, _server):
        compare(page, other)
        page.say("What is a list?")
        until(lambda: "The answer was cut" in page.said("-b") or "No answer" in page.said("-b"))
        until(lambda: "tokens/s" in page.status())
        assert "A list holds items in order." in page.said() and "answer was cut" not in page.said()
        assert page.status("-b") == "" and page.tab.locator("#difference p, mark").count() == 0
        until(page.can_send)


@pytest.mark.browser
def test_a_stopped_side_keeps_the_measures_it_had(browser: Any) -> None:
    with chat(browser, models=["steady", "silent"]) as (page, _server):
        compare(page, "silent")
        page.say("Hello?")
        until(lambda: "tokens/s" in page.status() and "A list" in page.said("-b"))
        page.press("Stop")
        until(lambda: page.status("-b").startswith("stopped"))
        until(page.can_send)
        assert "tokens/s" in page.status()


@pytest.mark.browser
def test_the_start_of_an_engine_is_told_and_not_taken_for_slowness(browser: Any) -> None:
    facts = {"org/base": {"state": "ready"}, "me/small": {"state": "stopped"}}
    with chat(browser, models=MODELS, facts=facts, pause=0.2) as (page, server):
        compare(page)
        page.say("What is a list?")
        until(lambda: page.status("-b") == "its engine is started first …")
        until(lambda: "with its engine's start" in page.status("-b") and "tokens/s" in page.status())
        assert "engine" not in page.status()
        until(page.can_send)
        server.facts = {name: {"state": "ready"} for name in MODELS}
        answered(page, "And a tuple?")
        assert "engine" not in page.status("-b")


@pytest.mark.browser
def test_a_seed_is_drawn_for_both_where_chance_matters_and_a_wrong_one_is_refused(browser: Any) -> None:
    with chat(browser, models=MODELS) as (page, server):
        compare(page)
        until(lambda: page.tab.locator("#temperature input[type=number]").input_value() == "0")
        answered(page)
        assert all("seed" not in each for each in server.requests)
        page.set("temperature", "1")
        answered_before = len(server.requests)
        page.say("Again?")
        until(lambda: len(server.requests) == answered_before + 2 and "seed" in page.status() and page.can_send())
        first, second = (each["seed"] for each in server.requests[-2:])
        assert first == second
        page.tab.locator("#seed input, #seed textarea").first.fill("-1")
        page.say("Once more?")
        until(lambda: "no whole number" in page.status())
        assert len(server.requests) == answered_before + 2
        assert page.tab.locator("#box textarea").input_value() == "Once more?"


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_two_answers_stand_under_each_other(browser: Any, theme: str) -> None:
    long = f"| {' | '.join('column' for _ in range(12))} |\n|{'---|' * 12}\n\n```\n{'x = 1; ' * 40}\n```\n\n{'w' * 300}"
    names = ["org/" + "long" * 40, "me/small"]
    with fake(words=[long], models=names, facts=FACTS) as server, app.launch(server.url) as served:
        page = Chat(browser, f"{served.url}/?__theme={theme}")
        page.tab.set_viewport_size({"width": 390, "height": 844})
        compare(page)
        answered(page)
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= 390
        upper, lower = (page.tab.locator(each).bounding_box() for each in ("#chat", "#chat-b"))
        assert lower["y"] >= upper["y"] + upper["height"] and upper["x"] == lower["x"]
        page.tab.set_viewport_size({"width": 1280, "height": 800})
        until(lambda: page.tab.locator("#chat-b").bounding_box()["x"] > 400)
        left, right = (page.tab.locator(each).bounding_box() for each in ("#chat", "#chat-b"))
        assert left["y"] == right["y"] and right["x"] >= left["x"] + left["width"]
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= 1280
        page.tab.close()
