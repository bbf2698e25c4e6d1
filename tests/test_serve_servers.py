"""The client over what OpenAI-compatible servers do differently from vLLM: requests, URLs, and shapes of an answer."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from serve_helpers import Fake, fake

from hubplugin.errors import ServeError
from serve import client
from serve.answer_events import message

ASKED = [{"role": "user", "content": "What is a list?"}]
SETTINGS: dict[str, Any] = {"temperature": 0.5, "max_tokens": 32, "timeout": 5.0}


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake() as running:
        yield running


@pytest.fixture(params=["a thread", "an event loop"])
def ask(request: pytest.FixtureRequest) -> Any:
    """The pieces of an answer, over both clients."""

    async def collected(url: str, model: str) -> list[client.Piece]:
        return [piece async for piece in client.astream(url, model, ASKED, **SETTINGS)]

    def ask(url: str, model: str = "steady") -> list[client.Piece]:
        if request.param == "a thread":
            return list(client.stream(url, model, ASKED, **SETTINGS))
        return asyncio.run(collected(url, model))

    return ask


def text(pieces: list[client.Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def events(*deltas: Any, finish: str | None = "stop") -> bytes:
    """A stream of events with these deltas."""
    rows: list[Any] = [{"choices": [{"delta": delta}]} for delta in deltas]
    rows += [{"choices": [{"delta": {}, "finish_reason": finish}]}]
    return b"".join(b"data: " + json.dumps(row).encode() + b"\n\n" for row in rows) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "Unrecognized request argument supplied: stream_options"}}),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "not permitted"}]}),
        (400, [{"error": {"code": 400, "message": 'Unknown name "include_usage"', "status": "INVALID_ARGUMENT"}}]),
    ],
)
def test_a_server_that_refuses_stream_options_is_asked_without_and_only_once(
    server: Fake, ask: Any, status: int, body: Any
) -> None:
    server.refuses = {"stream_options": (status, body)}
    *_, last = pieces = ask(server.url)
    assert text(pieces).startswith("A list holds") and last.finish == "stop"
    assert ["stream_options" in each for each in server.requests] == [True, False]
    ask(server.url)
    assert ["stream_options" in each for each in server.requests[2:]] == [False]


def test_a_server_that_wants_max_completion_tokens_is_given_them(server: Fake, ask: Any) -> None:
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    server.refuses = {"max_tokens": (400, {"error": {"message": said}})}
    assert text(ask(server.url)).startswith("A list holds")
    assert server.requests[1]["max_completion_tokens"] == 32 and "max_tokens" not in server.requests[1]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            422,
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
        ),
        (
            400,
            [{"error": {"code": 400, "message": 'Invalid JSON payload received. Unknown name "seed": no such field'}}],
        ),
    ],
)
def test_a_server_without_seeds_is_asked_without_and_no_seed_is_told(server: Fake, status: int, body: Any) -> None:
    server.refuses = {"seed": (status, body)}
    *_, last = list(client.stream(server.url, "steady", ASKED, seed=7, **SETTINGS))
    assert ["seed" in each for each in server.requests] == [True, False]
    assert last.finish == "stop" and last.seed is None


def test_any_other_refusal_is_an_error_at_once(server: Fake, ask: Any) -> None:
    too_long = "'max_tokens' or 'max_completion_tokens' is too large: the model's context length is 2048"
    server.refuses = {"model": (400, {"error": {"message": too_long}})}
    with pytest.raises(ServeError, match="too large") as caught:
        ask(server.url)
    assert "fewer tokens" in caught.value.fix and len(server.requests) == 1


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("", "/v1"),
        ("/v1", "/v1"),
        ("/v1beta/openai", "/v1beta/openai"),
        ("/v1beta/openai/", "/v1beta/openai"),
        ("/api/v3", "/api/v3"),
        ("/openai/v1/chat/completions", "/openai/v1"),
        ("/v1/models", "/v1"),
        ("/openai?api-version=1&key=s3cret", "/openai"),
    ],
)
def test_the_path_of_a_url_is_kept_and_a_bare_host_gets_v1(server: Fake, ask: Any, given: str, base: str) -> None:
    server.base = base
    assert client.models(server.url + given) == ["steady"]
    assert text(ask(server.url + given)).startswith("A list holds")
    query = given.partition("?")[2]
    assert server.posted == [f"{base}/chat/completions" + (f"?{query}" if query else "")]
    assert client.endpoint(server.url + given) == server.url + base  # a key in the query is not shown


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://[::1", "http://me:s3cret@127.0.0.1:99999"])
def test_a_url_that_cannot_be_parsed_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ServeError, match="no http URL") as caught:
        client.models(url)
    assert "s3cret" not in caught.value.lines()


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
def test_a_key_that_no_header_can_carry_is_an_error(server: Fake, key: str) -> None:
    with pytest.raises(ServeError, match="no header can carry") as caught:
        client.models(server.url, api_key=key)
    assert caught.value.where == "VLLM_API_KEY" and key not in caught.value.lines()


@pytest.mark.parametrize(
    ("listing", "names"),
    [([{"id": "a"}, {"id": "b"}], ["a", "b"]), ({"object": "list", "data": None}, []), ({"data": [{"id": 7}]}, ["7"])],
)
def test_lists_of_models_in_other_shapes_are_read(server: Fake, listing: Any, names: list[str]) -> None:
    server.listing = listing
    assert client.models(server.url) == names


def test_where_there_is_no_list_of_models_the_known_one_is_taken(server: Fake) -> None:
    server.listing = 404
    assert client.models(server.url, known="mine") == ["mine"]
    with pytest.raises(ServeError, match="has no list of models") as caught:
        client.models(server.url)
    assert "--model" in caught.value.fix


@pytest.mark.parametrize(
    ("raw", "said", "thought"),
    [
        (
            events({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"content": "c"}),
            "abc",
            "",
        ),
        (events({"content": ["a", {"text": "b"}, {"type": "image_url", "image_url": {}}]}), "ab", ""),
        (events({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}), "", "hm"),
        (events({"content": None}, None, {"role": "assistant"}, {"content": "a", "tool_calls": None}), "a", ""),
        (events({"reasoning_content": "h", "content": None}, {"reasoning": "m"}, {"content": "a"}), "a", "hm"),
        (events({"content": None, "refusal": "No."}), "No.", ""),
        (b'data: {"id": "1"}\n\ndata: {"choices": null, "usage": null}\n\n' + events({"content": "a"}), "a", ""),
        (b": ping\n\nevent: message\nid: 7\nretry: 1\n" + events({"content": "a"}), "a", ""),
        (events({"content": "a\r\nb"}).replace(b"\n\n", b"\r\n\r\n"), "a\r\nb", ""),
        (events({"content": "a"}).replace(b"data: ", b"data:"), "a", ""),
        (b"\xef\xbb\xbf" + events({"content": "a"}), "a", ""),
        (events({"content": "a"}).removesuffix(b"\n\ndata: [DONE]\n\n"), "a", ""),
        (events({"content": "\ud83d"}, {"content": "\ude00!"}), "😀!", ""),
        (events({"content": "a\ud83d"}, {"content": "b"}), "a\ufffdb", ""),
    ],
)
def test_answers_in_other_shapes_are_read(server: Fake, ask: Any, raw: bytes, said: str, thought: str) -> None:
    server.raw = [raw]
    pieces = ask(server.url)
    assert text(pieces) == said
    assert "".join(piece.reasoning for piece in pieces) == thought
    assert (pieces[-1].finish, pieces[-1].tokens, pieces[-1].tokens_per_second) == ("stop", None, None)
    assert len(pieces) == 1 or pieces[-1].first is not None


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("content", ["A list\n\nholds.", [{"type": "text", "text": "A list\n\nholds."}]])
def test_an_answer_that_is_not_streamed_is_read(server: Fake, ask: Any, content: Any, indent: int | None) -> None:
    said = {"role": "assistant", "content": content, "reasoning_content": "hm"}
    body = {"choices": [{"message": said, "finish_reason": "length"}], "usage": {"completion_tokens": 3}}
    raw = json.dumps(body, indent=indent).encode()
    server.raw = [raw[:5], raw[5:90], raw[90:]]
    first, last = ask(server.url)
    assert (first.text, first.reasoning) == ("A list\n\nholds.", "hm")
    assert (last.finish, last.tokens) == ("length", 3)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b'data: {"error": "out of memory"}\n\n', "out of memory"),
        (b'event: error\ndata: {"message": "out of memory"}\n\n', "out of memory"),
        (b'error: {"code": 500, "message": "out of memory"}\n\n', "out of memory"),
        (b'data: {"object": "error", "message": "out of memory", "code": 500}\n\n', "out of memory"),
        (b'{"error": {"message": "out of memory"}}', "out of memory"),
        (b"<html>A page</html>", "no part of an answer"),
        (b'data: {"choices": ["a"]}\n\n', "no part of an answer"),
        (b'data: {"choices": [{"delta": "a"}]}\n\n', "no part of an answer"),
        (b"data: [1]\n\n", "no part of an answer"),
        (b'{"choices": [{"mess', "no part of an answer"),
        (b"", "stopped in the middle"),
        (events({"content": "a"}, finish=None), "stopped in the middle"),
    ],
)
def test_what_is_no_answer_is_an_error_with_three_parts(server: Fake, ask: Any, raw: bytes, what: str) -> None:
    server.raw = [raw]
    with pytest.raises(ServeError) as caught:
        ask(server.url)
    assert caught.value.where == f"{server.url}/v1"
    assert what in caught.value.what and caught.value.fix


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["body", "n"], "msg": "too many"}]}, "too many (body.n)"),
        ([{"error": {"message": "bad"}}], "bad"),
        ({"error": "bad"}, "bad"),
        ({"message": "bad\nworse"}, "bad worse"),
        ({}, "no reason given"),
        (None, "no reason given"),
    ],
)
def test_the_human_part_of_an_error_is_found(body: Any, said: str) -> None:
    assert message(body) == said
