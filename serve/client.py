"""Plain streaming from any OpenAI-compatible URL, with an error where the other side dies, stalls or refuses.

It knows HTTP, and leaves what is asked to `completion` and what an answer says to `answer_events`; it knows nothing
about vLLM's processes or about pages.

Not over the `openai` package, which was tried: it collects a line without an end for ever, may send OPENAI_API_KEY to
any URL, and needs as many lines around it as this file has (docs/log.md, 2026-11-28).
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, TypeVar

import httpx

from hubplugin.errors import ServeError
from serve import ports, scoring, server_address
from serve.answer_events import ALIVE, URL_AND_PORT
from serve.catalogue import Listed, read
from serve.completion import Call, check
from serve.completion import Piece as Piece
from serve.scoring import Scored
from serve.server_address import endpoint as endpoint

TIMEOUT = 120.0  # seconds of silence; the first token of a long prompt on a CPU needs patience
CONNECT = 5.0  # seconds

Client = TypeVar("Client", httpx.Client, httpx.AsyncClient)


def models(
    base_url: str, *, api_key: str | None = None, timeout: float = CONNECT, known: str | None = None
) -> list[str]:
    """The names of `catalogue`."""
    return [each.name for each in catalogue(base_url, api_key=api_key, timeout=timeout, known=known)]


def catalogue(
    base_url: str, *, api_key: str | None = None, timeout: float = CONNECT, known: str | None = None
) -> list[Listed]:
    """The models a server offers, with what it says of each; `known` alone where it has no list. Raises ServeError."""
    url = endpoint(base_url)
    with _explained(url, timeout), _client(httpx.Client, url, timeout) as client:
        answer = client.get(server_address.address(base_url, "models"), headers=server_address.headers(api_key))
    if answer.status_code in (404, 405) and known:
        return [Listed(known)]
    check(answer, url, "")
    try:
        return read(answer.json())
    except (ValueError, KeyError, TypeError) as error:
        raise ServeError(url, "does not answer as an OpenAI-compatible server", URL_AND_PORT) from error


def stream(
    base_url: str,
    model: str,
    messages: Sequence[dict[str, str]],
    *,
    temperature: float,
    max_tokens: int,
    stop: Sequence[str] = (),
    seed: int | None = None,
    top_p: float | None = None,
    logprobs: bool = False,
    api_key: str | None = None,
    timeout: float = TIMEOUT,
) -> Iterator[Piece]:
    """The answer to a conversation, piece by piece; the last piece carries tokens and seconds.

    With `logprobs` pieces carry their tokens with log-probabilities, where the server has any. `top_p` of None is the
    server's own. Closing the iterator closes the connection, which makes the server stop generating. Raises ServeError
    where the server cannot be reached, refuses, reports an error, closes or aborts in the middle of the
    answer, or is silent for `timeout` seconds.
    """
    call = Call(base_url, model, messages, temperature, max_tokens, stop, seed, top_p, logprobs, 0, api_key)
    with _explained(call.url, timeout), _client(httpx.Client, call.url, timeout) as client:
        while not call.accepted:
            with client.stream(**call.request()) as response:
                if response.status_code != 200:
                    response.read()
                if call.refused(response):
                    continue
                for chunk in response.iter_bytes():
                    if piece := call.piece(call.answer.read(chunk)):
                        yield piece
                    if call.answer.done:
                        break
        if piece := call.piece(call.answer.end()):
            yield piece
        yield call.last()


def complete(
    base_url: str,
    model: str,
    prompt: str,
    *,
    temperature: float,
    max_tokens: int,
    seed: int | None = None,
    api_key: str | None = None,
    timeout: float = TIMEOUT,
) -> Piece:
    """How a text goes on, in one piece, by the completions endpoint. Raises ServeError as `stream`."""
    url = endpoint(base_url)
    body = {"model": model, "prompt": prompt, "temperature": temperature, "max_tokens": max_tokens}
    body |= {} if seed is None else {"seed": seed}
    target, headers = server_address.address(base_url, "completions"), server_address.headers(api_key)
    with _explained(url, timeout), _client(httpx.Client, url, timeout) as client:
        answer = client.post(target, json=body, headers=headers)
    check(answer, url, model)
    try:
        choice = answer.json()["choices"][0]
        return Piece(text=str(choice["text"]), finish=str(choice["finish_reason"]), seed=seed)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ServeError(url, "does not answer as an OpenAI-compatible server", URL_AND_PORT) from error


async def astream(
    base_url: str,
    model: str,
    messages: Sequence[dict[str, str]],
    *,
    temperature: float,
    max_tokens: int,
    stop: Sequence[str] = (),
    seed: int | None = None,
    top_p: float | None = None,
    logprobs: bool = False,
    likeliest: int = 0,
    api_key: str | None = None,
    timeout: float = TIMEOUT,
) -> AsyncGenerator[Piece, None]:
    """`stream` for an event loop: cancelling it closes the connection at once, even to a silent engine.

    likeliest  how many tokens, at most 20, each token is to name beside itself, where the server does so
    """
    call = Call(base_url, model, messages, temperature, max_tokens, stop, seed, top_p, logprobs, likeliest, api_key)
    with _explained(call.url, timeout):
        async with _client(httpx.AsyncClient, call.url, timeout) as client:
            while not call.accepted:
                async with client.stream(**call.request()) as response:
                    if response.status_code != 200:
                        await response.aread()
                    if call.refused(response):
                        continue
                    async for chunk in response.aiter_bytes():
                        if piece := call.piece(call.answer.read(chunk)):
                            yield piece
                        if call.answer.done:
                            break
            if piece := call.piece(call.answer.end()):
                yield piece
            yield call.last()


async def ascore(
    base_url: str,
    model: str,
    prompt: Sequence[int],
    tokens: Sequence[int],
    *,
    likeliest: int,
    api_key: str | None = None,
    timeout: float = TIMEOUT,
) -> list[Scored]:
    """What a model says of each of the `tokens` after the `prompt`, both as numbers in its vocabulary.

    Raises ServeError where the server cannot be reached or refuses, and where it does not score texts: only vLLM does.
    """
    url, received = endpoint(base_url), bytearray()
    request: dict[str, Any] = {
        "url": server_address.address(base_url, "completions"),
        "headers": server_address.headers(api_key),
        "json": scoring.body(model, [*prompt, *tokens], likeliest),
    }
    with _explained(url, timeout):
        async with _client(httpx.AsyncClient, url, timeout) as client, client.stream("POST", **request) as response:
            if response.status_code != 200:
                await response.aread()
            check(response, url, model)
            async for chunk in response.aiter_bytes():
                received += chunk
                if len(received) > scoring.LONGEST_BODY:
                    raise ServeError(url, "sent an answer without an end", URL_AND_PORT)
    return await asyncio.to_thread(scoring.read, bytes(received), tokens, url)


@contextlib.contextmanager
def _explained(url: str, timeout: float) -> Iterator[None]:
    """What httpx raises, as a ServeError."""
    try:
        yield
    except httpx.ReadTimeout as error:
        raise ServeError(url, f"the engine was silent for {timeout:g} s", ALIVE) from error
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ServeError(
            url, "nothing answers", "start one with `hubplugin serve`, and check the URL and port"
        ) from error
    except httpx.HTTPError as error:
        raise ServeError(url, "the connection broke in the middle of the answer", ALIVE) from error


def _client(kind: type[Client], url: str, timeout: float) -> Client:
    host = httpx.URL(url).host
    limits = httpx.Timeout(timeout, connect=min(CONNECT, timeout))
    # A proxy from the environment is for the world outside, never for this machine.
    return kind(timeout=limits, trust_env=not ports.is_loopback(host))
