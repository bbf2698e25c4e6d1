"""The streaming client, against a server that answers and one that misbehaves in every way we know."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
from serve_helpers import WORDS, Fake, fake, until

from hubplugin.errors import ServeError
from serve import client
from serve.catalogue import Listed

ASKED = [{"role": "user", "content": "What is a list?"}]


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake() as running:
        yield running


def ask(url: str, model: str = "steady", **options: object) -> list[client.Piece]:
    settings = {"temperature": 0.5, "max_tokens": 32, "timeout": 5.0} | options
    return list(client.stream(url, model, ASKED, **settings))  # type: ignore[arg-type]


async def ask_async(url: str, model: str) -> list[client.Piece]:
    pieces = client.astream(url, model, ASKED, temperature=0.5, max_tokens=32, timeout=5.0)
    return [piece async for piece in pieces]


def test_an_answer_arrives_in_order_and_ends_with_its_measures(server: Fake) -> None:
    *texts, last = ask(server.url)
    assert "".join(piece.text for piece in texts) == "".join(WORDS)
    assert all(piece.tokens is None and piece.finish is None for piece in texts)
    assert (last.text, last.finish, last.tokens) == ("", "stop", len(WORDS))
    assert last.seconds is not None and last.first is not None and 0 < last.first <= last.seconds
    assert last.tokens_per_second == pytest.approx(len(WORDS) / last.seconds)


def test_the_asynchronous_stream_says_the_same(server: Fake) -> None:
    *texts, last = asyncio.run(ask_async(server.url, "steady"))
    assert "".join(piece.text for piece in texts) == "".join(WORDS)
    assert last.tokens == len(WORDS)


def test_the_catalogue_says_what_a_server_says_of_its_models_and_no_nonsense(server: Fake) -> None:
    good = {"parent": "org/base", "bytes": 1000, "disk_ratio": 2, "mean_kl": 0.0, "perplexity_ratio": 1.5}
    good |= {"model_bits_per_weight": 4.25, "max_model_len": 2048, "state": "ready"}
    bad = {key: each for key, each in zip(good, ["", -1, True, "0.1", 1e300, [], 0, 7], strict=True)}
    server.models, server.facts = ["a", "b", "c"], {"b": good, "c": bad}
    assert client.catalogue(server.url) == [Listed("a"), Listed("b", **good), Listed("c")]
    assert client.models(server.url) == ["a", "b", "c"]
    server.listing = 404
    assert client.catalogue(server.url, known="known") == [Listed("known")]


def test_a_seed_is_sent_and_told_where_one_is_given(server: Fake) -> None:
    *_, last = ask(server.url, seed=7)
    assert (server.requests[0]["seed"], last.seed) == (7, 7)
    *_, last = ask(server.url)
    assert "seed" not in server.requests[1] and last.seed is None


def test_an_answer_is_streamed_not_collected(server: Fake) -> None:
    pieces = client.stream(server.url, "silent", ASKED, temperature=0, max_tokens=8, timeout=30)
    assert "".join(next(pieces).text for _ in range(1)) in ("A ", "A list ")  # while the server is still busy
    pieces.close()  # type: ignore[attr-defined]


def test_the_request_carries_the_settings_and_asks_for_usage(server: Fake) -> None:
    ask(server.url, stop=["\n"], temperature=0.25, max_tokens=7)
    sent = server.requests[0]
    assert sent["messages"] == ASKED
    assert (sent["temperature"], sent["max_tokens"], sent["stop"], sent["stream"]) == (0.25, 7, ["\n"], True)
    assert sent["stream_options"] == {"include_usage": True}


def test_the_key_is_sent_as_a_header_only_where_there_is_one(server: Fake) -> None:
    ask(server.url, api_key="k-1")
    ask(server.url)
    assert server.keys == ["Bearer k-1", None]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_a_url_is_taken_with_and_without_v1(server: Fake, suffix: str) -> None:
    assert client.models(server.url + suffix) == ["steady"]


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://"])
def test_what_is_no_http_url_is_refused(url: str) -> None:
    with pytest.raises(ServeError, match="no http URL"):
        client.models(url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ServeError) as caught:
        client.models("http://me:s3cret@127.0.0.1:1")
    assert "s3cret" not in caught.value.lines()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("dies", "stopped in the middle"),
        ("aborts", "stopped in the middle"),
        ("fails", "EngineCore encountered an issue"),
        ("garbage", "no part of an answer"),
        ("endless", "a line without an end"),
        ("status-401", "another API key"),
        ("status-404", "no such endpoint or model status-404: What is a list?"),
        ("status-500", "answers 500: What is a list?"),
        ("status-400", "refuses (400): What is a list?"),
    ],
)
def test_a_server_that_misbehaves_is_an_error_with_three_parts(
    server: Fake, model: str, what: str, asynchronous: bool
) -> None:
    with pytest.raises(ServeError) as caught:
        asyncio.run(ask_async(server.url, model)) if asynchronous else ask(server.url, model)
    assert caught.value.where == f"{server.url}/v1"
    assert what in caught.value.what
    assert caught.value.fix


def test_what_came_before_the_engine_died_was_delivered(server: Fake) -> None:
    pieces = client.stream(server.url, "dies", ASKED, temperature=0, max_tokens=8, timeout=5)
    text = ""
    with pytest.raises(ServeError):
        for piece in pieces:
            text += piece.text
    assert text == "".join(WORDS[:2])


def test_an_engine_that_falls_silent_is_an_error_not_a_hang(server: Fake) -> None:
    with pytest.raises(ServeError, match=r"silent for 0\.3 s"):
        ask(server.url, "silent", timeout=0.3)


def test_a_connection_that_is_reset_is_an_error() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def reset() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        # Linger of zero: closing sends RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()

    thread = threading.Thread(target=reset, daemon=True)
    thread.start()
    with pytest.raises(ServeError, match="connection broke"):
        ask(f"http://127.0.0.1:{port}")
    thread.join(5)
    listener.close()


def test_nothing_listening_is_an_error_that_says_how_to_start_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(ServeError, match="nothing answers") as caught:
        client.models(f"http://127.0.0.1:{port}")
    assert "hubplugin serve" in caught.value.fix


def test_closing_the_stream_hangs_up_so_that_the_server_can_stop(server: Fake) -> None:
    server.words = ["word "] * 100_000
    pieces = client.stream(server.url, "steady", ASKED, temperature=0, max_tokens=8, timeout=5)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    until(server.hung_up.is_set)


def test_a_page_that_is_no_model_server_is_told_apart(server: Fake) -> None:
    server.listing = {"hello": "world"}
    with pytest.raises(ServeError, match="does not answer as an OpenAI-compatible server"):
        client.models(server.url)


def test_a_proxy_in_the_environment_is_not_asked_about_this_machine(
    server: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert client.models(server.url) == ["steady"]
