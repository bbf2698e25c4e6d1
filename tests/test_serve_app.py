"""The chat page in a real browser: in front of a fake server for speed, and once in front of vLLM itself."""

import asyncio
import contextlib
import html
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serve_helpers import DEMO, WORDS, Chat, browser, chat, fake, until

from hubplugin.errors import ServeError
from serve import engine
from serve.chat_page import app, asking, conversation
from serve.chat_page.markup import markdown

MEASURES = r"stopped · about \d+ tokens · \d+\.\d s · about \d+\.\d tokens/s · first after \d+\.\d\d s"

__all__ = ["browser"]  # a fixture


def test_a_wrong_url_is_an_error_before_any_page_is_served() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ServeError, match="nothing answers"):
        app.launch(f"http://127.0.0.1:{port}")


def test_a_page_port_in_use_is_an_error_with_three_parts() -> None:
    with fake() as server, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError) as caught:
            app.launch(server.url, port=port)
    assert (caught.value.where, caught.value.what) == (f"127.0.0.1:{port}", "the port is in use")
    assert "--port" in caught.value.fix


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a List<int> & more", "a List<int> & more"),
        ("> quoted", "quoted"),
        ("say `a<b>` or <b>", "say a<b> or <b>"),
        ("```html\n<b>\n```\n<i>", "<b>\n\n\n<i>"),
        ("```html\n<b>\nstill open <i>", "<b>\nstill open <i>"),
        ("so:\n\n    if a < b:\n\nand <i>", "so:\n\nif a < b:\n\n\nand <i>"),
    ],
)
def test_tags_in_an_answer_are_text_and_code_stays_as_it_is(said: str, shown: str) -> None:
    rendered = re.sub(r"<button.*?</button>", "", markdown.html(said))
    assert html.unescape(re.sub("<[^>]+>", "", rendered)).strip() == shown


def test_reasoning_within_an_answer_is_apart_and_a_tag_beside_it_is_text() -> None:
    thought, text = conversation.answer("<think>hm</think> <p>")
    assert thought["metadata"]["title"] == "Reasoning" and "<p>hm</p>" in thought["content"]
    assert "metadata" not in text and "<p>&lt;p&gt;</p>" in text["content"]


def test_an_error_cannot_bring_markup_into_the_page() -> None:
    content = conversation.failure(ServeError("url", "<script>alert(1)</script>", "a & b"), "No answer")["content"]
    assert "<script>" not in content and "a &amp; b" in content


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_the_page_in_the_foreground_ends_with_a_signal(number: int, code: int) -> None:
    script = (
        "import sys; from serve.chat_page import app\n"
        "ready = lambda page: print(page.url, flush=True)\n"
        "sys.exit(app.run_forever(sys.argv[1], ready=ready))\n"
    )
    with fake() as server:
        process = subprocess.Popen([sys.executable, "-c", script, server.url], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        page = httpx.get(process.stdout.readline().strip(), trust_env=False)
        assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
        process.send_signal(number)
        assert process.wait(60) == code
        assert process.stdout.read() == ""  # stdout carries what `ready` says, nothing else


def test_a_key_reaches_the_server_and_never_the_browser() -> None:
    with fake() as server, app.launch(server.url, api_key="key-s3cret") as page:
        assert server.keys == ["Bearer key-s3cret"]
        for path in ("", "config", "gradio_api/info"):
            assert "s3cret" not in httpx.get(f"{page.url}/{path}", trust_env=False).text


@pytest.mark.browser
def test_a_question_is_answered_with_its_speed_and_nothing_comes_from_outside(browser: Any) -> None:
    with chat(browser) as (page, server):
        page.tab.locator("#system textarea").fill("Be brief.")
        page.say("What is a list?")
        until(lambda: "tokens/s" in page.status())
        assert "A list holds items in order." in page.said()
        assert f"{len(WORDS)} tokens" in page.status()
        until(page.can_send)
        page.say("And a tuple?")
        until(lambda: len(server.requests) == 2 and "tokens/s" in page.status())
        roles = [message["role"] for message in server.requests[1]["messages"]]
        assert roles == ["system", "user", "assistant", "user"]
        assert server.requests[1]["messages"][2]["content"] == "".join(WORDS)  # as it was said, to the last byte
        strangers = [url for url in page.asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
        assert strangers == [] and page.trouble == []


@pytest.mark.browser
def test_an_answer_is_seen_while_it_grows_and_stop_ends_it(browser: Any) -> None:
    with chat(browser, words=["word "] * 10_000, pause=0.02) as (page, server):
        page.say("Go on.")
        until(lambda: "word word word" in page.said())
        page.press("Stop")
        until(server.hung_up.is_set)  # the engine stops generating, not only the page
        until(lambda: page.status().startswith("stopped"))
        until(page.can_send)
        until(lambda: re.fullmatch(MEASURES, page.status()))
        assert "word" in page.said()
        server.words, server.pause = WORDS, 0.0
        page.say("Again.")
        until(lambda: "A list holds items in order." in page.said())
        said = [message["content"] for message in server.requests[1]["messages"]]
        assert said[0] == "Go on." and said[1].startswith("word word") and said[2:] == ["Again."]


@pytest.mark.browser
def test_stop_works_on_an_engine_that_is_silent(browser: Any) -> None:
    with chat(browser, models=["silent"]) as (page, _server):
        page.say("Hello?")
        until(lambda: "A list" in page.said())
        page.press("Stop")
        until(page.can_send, 5)


@pytest.mark.browser
def test_a_question_sent_as_soon_as_send_is_back_is_asked(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio ignores an event that is not over yet, and it is over later than its last update is shown."""
    turn = asking._answer

    async def over_later(*inputs: Any) -> AsyncIterator[Any]:
        async for update in turn(*inputs):
            yield update
        await asyncio.sleep(1)

    monkeypatch.setattr(asking, "_answer", over_later)
    with chat(browser) as (page, server):
        page.say("What is a list?")
        until(lambda: page.answers() == 1 and page.can_send())
        page.say("And a tuple?")
        until(lambda: len(server.requests) == 2)


@pytest.mark.browser
def test_what_is_typed_while_an_answer_grows_stays_and_is_asked_after_it(browser: Any) -> None:
    with chat(browser, words=["word "] * 50, pause=0.04) as (page, server):
        page.say("Go on.")
        until(lambda: "word word" in page.said())
        box = page.tab.locator("#box textarea")
        box.press_sequentially("And then?", delay=20)
        box.press("Enter")
        until(page.can_send)
        assert box.input_value() == "And then?" and len(server.requests) == 1
        box.press("Enter")
        until(lambda: len(server.requests) == 2)


@pytest.mark.browser
def test_no_question_is_asked_while_another_is_asked_again(browser: Any) -> None:
    with chat(browser) as (page, server):
        page.say("What is a list?")
        until(lambda: "tokens/s" in page.status())
        server.words, server.pause = ["word "] * 50, 0.04
        page.press("Retry")
        until(lambda: "word word" in page.said())
        page.say("And then?")
        until(page.can_send)
        assert len(server.requests) == 2
        assert page.tab.locator("#box textarea").input_value() == "And then?"


@pytest.mark.browser
def test_clear_empties_the_conversation_and_the_model_forgets(browser: Any) -> None:
    with chat(browser) as (page, server):
        page.say("What is a list?")
        until(lambda: "tokens/s" in page.status())
        page.press("Clear conversation")
        until(lambda: "list" not in page.said())
        assert page.status() == ""
        page.say("Anything?")
        until(lambda: len(server.requests) == 2)
        assert server.requests[1]["messages"] == [{"role": "user", "content": "Anything?"}]


@pytest.mark.browser
def test_an_engine_that_dies_is_an_error_in_the_page_and_the_page_works_on(browser: Any) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(fake(words=["word "] * 10_000, pause=0.02))
        page = Chat(browser, stack.enter_context(app.launch(server.url)).url)
        page.say("Go on.")
        until(lambda: "word word" in page.said())
        server.die()
        until(lambda: "The answer was cut" in page.said())
        assert "word word" in page.said()
        until(page.can_send)
        page.say("Still there?")
        until(lambda: "No answer: nothing answers" in page.said(), 60, lambda: (page.said(), page.status()))
        until(page.can_send)
        again = stack.enter_context(fake(port=server.server_address[1]))
        page.say("And now?")
        until(lambda: "A list holds items in order." in page.said())
        # Neither the errors nor the question that got no answer are sent to the model.
        contents = [message["content"] for message in again.requests[0]["messages"]]
        assert contents[0] == "Go on." and contents[-1] == "And now?" and len(contents) == 3


@pytest.mark.browser
def test_an_answer_with_markup_neither_runs_nor_calls_out(browser: Any) -> None:
    with fake() as outside:
        words = [
            "<script>window.pwned = 1</script>",
            "<img src=x onerror='window.pwned = 1'>",
            f"![x]({outside.url}/secret.png) <img src='{outside.url}/secret.png'>",
            " done",
        ]
        with chat(browser, words=words) as (page, _server):
            page.say("Attack.")
            until(lambda: "done" in page.said() and "tokens/s" in page.status())
            until(lambda: page.tab.locator("#chat img").evaluate_all("all => all.every(one => one.complete)"))
            assert page.tab.evaluate("window.pwned") is None
        assert outside.paths == []


@pytest.mark.browser
def test_code_in_a_conversation_is_read_as_it_was_written(browser: Any) -> None:
    with chat(browser, words=["Use List<int>, ", "`dict<k>` or <foo>bar</foo>."]) as (page, server):
        page.say("What is Map<K, V>?")
        until(lambda: "tokens/s" in page.status())
        assert "Use List<int>, dict<k> or <foo>bar</foo>." in page.said()
        assert "What is Map<K, V>?" in page.said()
        page.say("More.")
        until(lambda: len(server.requests) == 2)
        assert [message["content"] for message in server.requests[1]["messages"]] == [
            "What is Map<K, V>?",
            "Use List<int>, `dict<k>` or <foo>bar</foo>.",
            "More.",
        ]


@pytest.mark.browser
def test_the_model_chooser_lists_what_the_server_serves(browser: Any) -> None:
    with chat(browser, models=["steady", "other"]) as (page, server):
        page.tab.locator("#model input").first.click()
        page.tab.get_by_role("option", name="other").click()
        page.say("Who are you?")
        until(lambda: server.requests)
        assert server.requests[0]["model"] == "other"


@pytest.mark.serve
def test_through_vllm_a_question_is_answered_and_its_death_is_told(browser: Any, tmp_path: Path) -> None:
    with engine.start(DEMO, name="docs-llama-12m", log=tmp_path / "log") as running, app.launch(running.url) as served:
        page = Chat(browser, served.url)
        page.set("temperature", "0")
        page.set("tokens", "96")
        for question in ("What is a list?", "How do I open a file?"):
            before = page.answers()
            page.say(question)
            until(lambda before=before: page.answers() > before and "tokens/s" in page.status(), 60)
            until(page.can_send)
        page.press("Clear conversation")
        until(lambda: page.answers() == 0)
        page.set("tokens", "900")
        question = "Count: 1, 2, 3, 4, 5, 6, 7,"  # and greedily, so that it goes on to the last of its tokens
        page.say(question)
        until(lambda: page.answers() and len(page.said()) > len(question) + 80, 60)  # in the midst of its answer
        for process in psutil.Process(running.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        until(lambda: "The answer was cut" in page.said(), 60)
        until(lambda: running.process.poll() is not None, 60)  # before that the socket may still be there, and break
        until(page.can_send)
        page.say("Still there?")
        until(lambda: "No answer: nothing answers" in page.said(), 60, lambda: (page.said(), page.status()))
        page.tab.close()
