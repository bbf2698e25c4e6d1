"""What can be done with a conversation of the chat page: ask again, change a question, save it, find it again."""

import json
from pathlib import Path
from typing import Any

import pytest
from serve_helpers import WORDS, Chat, browser, chat, until

from serve.catalogue import Listed
from serve.chat_page import conversation, keeping, listing

__all__ = ["browser"]  # a fixture

MODELS = ["org/base", "me/small"]
FACTS = {"me/small": {"parent": "org/base", "bytes": 8_812_345, "disk_ratio": 2.8125}}
SAYS = {"me/small": ["A list ", "keeps <b>items</b>."]}


@pytest.mark.parametrize(
    "stored",
    [None, [], "x", {"sides": 3}, {"sides": [{}]}, {"sides": ["a", "b"]}, {"sides": [{"turns": 3}, {"turns": [1, {}]}]},
     {"sides": [{"turns": [{"role": "system", "content": "x"}, {"role": "user", "content": 3}]}, {}]}],
)  # fmt: skip
def test_what_a_browser_sends_as_kept_is_checked(stored: Any) -> None:
    assert keeping.read(stored).turns == ([], [])


def test_the_oldest_is_left_out_where_a_browser_has_no_room() -> None:
    turns = [{"role": role, "content": str(number) * 200_000} for number in range(4) for role in keeping.ROLES]
    left = keeping.read(keeping.kept("a", "", turns, turns[:2])).turns
    assert left[0] == turns[-len(left[0]) :] and 0 < len(left[0]) < len(turns) and left[1] == turns[:2]


def test_only_answers_to_the_same_questions_are_marked_again() -> None:
    def turns(*said: str) -> list[dict[str, str]]:
        return [{"role": keeping.ROLES[index % 2], "content": text} for index, text in enumerate(said)]

    first, second = conversation.drawn(turns("old", "a b", "q", "a c"), turns("q", "a d"))
    assert ["<mark" in each["content"] for each in first] == [False, False, False, True]
    assert ["<mark" in each["content"] for each in second] == [False, True]


@pytest.mark.parametrize(
    ("contexts", "asked", "most", "value"),
    [
        ([], 512, 4096, None),
        ([None, 32768], 512, 4096, 512),
        ([2048], 512, 2032, 512),
        ([2048, 500], 512, 480, 248),
        ([20], 512, 32, 16),
    ],
)
def test_max_tokens_stay_within_the_smallest_context(
    contexts: list[int | None], asked: int, most: int, value: int | None
) -> None:
    update = listing.limited(asked, [Listed("x", max_model_len=context) for context in contexts])
    assert (update["maximum"], update.get("value")) == (most, value)


@pytest.mark.parametrize(
    "stored",
    [None, [], "x", {"system": 3, "temperature": "hot", "top_p": 0, "tokens": True, "seed": 7, "compare": []},
     {"sure": 1}, {"colour": "red"}, {"colour": ["kl"]},
     {"temperature": -1, "top_p": 1.5, "tokens": 10**9, "alone": 3}, {"temperature": float("nan")}],
)  # fmt: skip
def test_settings_that_a_browser_sends_as_kept_are_checked(stored: Any) -> None:
    assert keeping.read_settings(stored) == keeping.KeptSettings()


def test_what_an_earlier_page_kept_of_colours_is_read() -> None:
    assert keeping.read_settings({"sure": True}).colour == "probability"
    assert keeping.read_settings({"sure": True, "colour": "kl"}).colour == "kl"


def test_settings_are_kept_each_for_itself() -> None:
    stored = {"system": "Be brief.", "temperature": 0, "top_p": 0.9, "tokens": "many", "seed": "7", "alone": 1.5}
    assert keeping.read_settings(stored) == keeping.KeptSettings("Be brief.", 0, 0.9, seed="7", alone=1.5)


def test_tokens_are_left_out_first_and_of_files_always() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tokens": "x" * 2_000_000}]
    plain = [turns[0], {"role": "assistant", "content": "a"}]
    assert keeping.read(keeping.kept("m", "", turns, [])).turns == (plain, [])
    for written in (keeping.as_json, keeping.as_markdown):
        assert "xxx" not in written([], "m", "", turns, [])


@pytest.mark.parametrize(
    ("chosen", "other", "value"), [("a", "b", "b"), ("a", "a", ""), ("a", "gone", ""), (None, "a", "a")]
)
def test_the_second_model_is_never_the_first(chosen: str | None, other: str, value: str) -> None:
    update = listing.others([Listed("a"), Listed("b")], chosen, other)
    assert update["value"] == value and chosen not in dict(update["choices"]).values()


def compared(page: Chat, question: str = "What is a list?") -> None:
    if page.tab.locator("#chat-b").count() == 0:
        page.choose("compare", "me/small")
        until(lambda: page.tab.locator("#chat-b").count())
    before = page.answers()
    page.say(question)
    until(lambda: page.answers() > before and page.tab.locator("#difference p").count())
    until(page.can_send)


def stored(page: Chat) -> int:
    """Characters that the browser keeps for the page."""
    return int(page.tab.evaluate("Object.values(localStorage).join('').length"))


@pytest.mark.browser
def test_retry_asks_the_last_question_again_without_its_answer(browser: Any) -> None:
    with chat(browser, models=MODELS, says=SAYS) as (page, server):
        page.press("Retry")  # of nothing is nothing
        compared(page)
        page.press("Retry")
        until(lambda: len(server.requests) == 4 and page.can_send())
        assert all([each["content"] for each in one["messages"]] == ["What is a list?"] for one in server.requests)
        until(lambda: page.tab.locator("#difference p").count())
        for which in ("", "-b"):
            assert page.tab.locator(f"#chat{which} .user.message").count() == 1


@pytest.mark.browser
def test_the_last_question_is_edited_and_asked_anew(browser: Any) -> None:
    with chat(browser, models=MODELS, says=SAYS) as (page, server):
        compared(page)
        compared(page, "And a tupel?")
        page.press("Edit last")
        box = page.tab.locator("#box textarea")
        until(lambda: box.input_value() == "And a tupel?")
        until(lambda: "tupel" not in page.said() + page.said("-b"))
        box.fill("And a tuple?")
        box.press("Enter")
        until(lambda: len(server.requests) == 6)
        for request in server.requests[4:]:
            said = [each["content"] for each in request["messages"]]
            assert said[0] == "What is a list?" and said[2:] == ["And a tuple?"]


@pytest.mark.browser
def test_nothing_is_retried_or_edited_while_an_answer_grows(browser: Any) -> None:
    with chat(browser, words=["word "] * 10_000, pause=0.02) as (page, server):
        page.say("Go on.")
        until(lambda: "word word" in page.said())
        page.press("Retry")
        page.press("Edit last")
        page.press("Stop")
        until(lambda: page.status().startswith("stopped") and page.can_send())
        assert len(server.requests) == 1 and page.tab.locator("#box textarea").input_value() == ""
        assert "Go on." in page.said()


@pytest.mark.browser
def test_a_conversation_is_saved_as_it_was_said(browser: Any, tmp_path: Path) -> None:
    with chat(browser, models=MODELS, says=SAYS, facts=FACTS) as (page, _server):
        compared(page)
        saved = {}
        for label in ("Save as JSON", "Save as Markdown"):
            with page.tab.expect_download() as download:
                page.press(label)
            file = tmp_path / download.value.suggested_filename
            download.value.save_as(file)
            saved[file.name] = file.read_text(encoding="utf-8")
        first, second = json.loads(saved["conversation.json"])["conversations"]
        assert (first["model"], second["model"]) == ("org/base", "me/small")
        assert second["facts"]["bytes"] == 8_812_345
        assert [turn["content"] for turn in first["turns"]] == ["What is a list?", "".join(WORDS)]
        answer = second["turns"][1]
        assert answer["content"] == "A list keeps <b>items</b>." and answer["model"] == "me/small"
        assert "tokens/s" in answer["measures"] and answer["settings"].startswith("temperature 0, max tokens 512")
        lines = saved["conversation.md"].split("\n\n")
        assert lines[lines.index("## me/small") + 1] == "8.8 MB · 2.81x smaller than org/base"
        assert lines[lines.index("### Answer of me/small") + 1] == "A list keeps <b>items</b>."


@pytest.mark.browser
def test_a_conversation_is_there_again_after_a_reload_and_gone_once_cleared(browser: Any) -> None:
    with chat(browser, models=MODELS, says=SAYS) as (page, server):
        compared(page)
        until(lambda: stored(page) > 500)
        page.tab.reload()
        until(lambda: "A list holds items in order." in page.said() and "keeps <b>items</b>" in page.said("-b"))
        assert page.tab.locator("#compare input").first.input_value() == "me/small"
        assert page.tab.locator("#chat mark, #chat-b mark").all_inner_texts() == ["holds", "keeps"]
        compared(page, "More?")
        assert server.requests[-1]["messages"][0]["content"] == "What is a list?"
        page.press("Clear conversation")
        until(lambda: "list" not in page.said() and stored(page) < 500)
        page.tab.reload()
        page.until_ready()
        page.tab.wait_for_timeout(500)
        assert page.answers() == 0 and page.trouble == []


@pytest.mark.browser
def test_max_tokens_follow_the_chosen_models(browser: Any) -> None:
    facts = {"org/base": {"max_model_len": 2048}, "me/small": {"max_model_len": 256}}
    with chat(browser, models=MODELS, facts=facts) as (page, server):
        tokens = page.tab.locator("#tokens input[type=number]")
        until(lambda: tokens.get_attribute("max") == "2032")
        assert tokens.input_value() == "512"
        page.choose("compare", "me/small")
        until(lambda: tokens.get_attribute("max") == "240" and tokens.input_value() == "128")
        compared(page)
        assert [each["max_tokens"] for each in server.requests] == [128, 128]


@pytest.mark.browser
def test_settings_and_the_second_model_are_there_again_after_a_reload(browser: Any) -> None:
    wanted = {"temperature": "0.35", "tokens": "96", "top-p": "0.8"}
    with chat(browser, models=MODELS) as (page, server):
        page.set("temperature", "1.2")
        page.choose("compare", "me/small")
        until(lambda: page.tab.locator("#temperature input[type=number]").input_value() == "0")
        for slider, value in wanted.items():
            page.set(slider, value)
        page.tab.locator("#system textarea").fill("Be brief.")
        page.tab.locator("#seed input, #seed textarea").first.press_sequentially("7")
        page.tab.wait_for_timeout(1000)  # the browser keeps it without a sign
        page.tab.reload()
        page.until_ready()
        until(lambda: page.tab.locator("#chat-b").count())
        assert page.tab.locator("#compare input").first.input_value() == "me/small"
        for slider, value in wanted.items():
            box = page.tab.locator(f"#{slider} input[type=number]")
            until(lambda box=box, value=value: box.input_value() == value, 5)
        page.say("What is a list?")
        until(lambda: len(server.requests) == 2 and page.can_send())
        for request in server.requests:
            assert (request["temperature"], request["max_tokens"], request["top_p"], request["seed"]) == (
                0.35,
                96,
                0.8,
                7,
            )
            assert request["messages"][0] == {"role": "system", "content": "Be brief."}
        page.choose("model", "me/small")  # the second cannot be the same
        until(lambda: page.tab.locator("#chat-b").count() == 0)
        assert page.tab.locator("#compare input").first.input_value() == "none"
        until(lambda: page.tab.locator("#temperature input[type=number]").input_value() == "1.2")
        assert page.trouble == []
