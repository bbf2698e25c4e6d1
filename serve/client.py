"""Plain streaming from any OpenAI-compatible URL, with an error where the other side dies, stalls or refuses.

It knows HTTP and server-sent events; it knows nothing about vLLM's processes or about pages.

Not over the `openai` package, which was tried: it collects a line without an end for ever, may send OPENAI_API_KEY to
any URL, and needs as many lines around it as this file has (docs/log.md, 2026-11-28).
"""

import contextlib
import json
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from hubplugin.errors import ServeError
from serve import ports

TIMEOUT = 120.0  # seconds of silence; the first token of a long prompt on a CPU needs patience
CONNECT = 5.0  # seconds
LONGEST_LINE = 2**20  # bytes of one event; a token's is a few hundred
LONGEST = 300  # characters of a server's message that are shown

Client = TypeVar("Client", httpx.Client, httpx.AsyncClient)

ALIVE = "see whether the engine is still running, and start it again"


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The last one of a stream has no text, and it alone carries the measures."""

    text: str = ""
    finish: str | None = None  # stop | length | ..., as the server says
    tokens: int | None = None  # completion tokens as the server counts them; None where it does not say
    seconds: float | None = None  # from sending the request to the end of the answer
    first: float | None = None  # seconds from sending the request to the first text

    @property
    def tokens_per_second(self) -> float | None:
        """Completion tokens over the whole time, the wait for the first one included."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


def models(base_url: str, *, api_key: str | None = None, timeout: float = CONNECT) -> list[str]:
    """The model names a server offers. Raises ServeError where it does not answer as one."""
    url = endpoint(base_url)
    with _explained(url, timeout), _client(httpx.Client, url, timeout) as client:
        answer = client.get(f"{url}/models", headers=_headers(api_key))
    _check(answer, url, "")
    try:
        return [str(row["id"]) for row in answer.json()["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ServeError(url, "does not answer as an OpenAI-compatible server", "check the URL and port") from error


def stream(
    base_url: str,
    model: str,
    messages: Sequence[dict[str, str]],
    *,
    temperature: float,
    max_tokens: int,
    stop: Sequence[str] = (),
    api_key: str | None = None,
    timeout: float = TIMEOUT,
) -> Iterator[Piece]:
    """The answer to a conversation, piece by piece; the last piece carries tokens and seconds.

    Closing the iterator closes the connection, which makes the server stop generating. Raises ServeError
    where the server cannot be reached, refuses, reports an error, closes or aborts in the middle of the
    answer, or is silent for `timeout` seconds.
    """
    call = _Call(base_url, model, messages, temperature, max_tokens, stop, api_key)
    with _explained(call.url, timeout), _client(httpx.Client, call.url, timeout) as client:
        with client.stream(**call.request()) as response:
            if response.status_code != 200:
                response.read()
                _check(response, call.url, model)
            for chunk in response.iter_bytes():
                if text := call.read(chunk):
                    yield Piece(text)
                if call.done:
                    break
        yield call.last()


async def astream(
    base_url: str,
    model: str,
    messages: Sequence[dict[str, str]],
    *,
    temperature: float,
    max_tokens: int,
    stop: Sequence[str] = (),
    api_key: str | None = None,
    timeout: float = TIMEOUT,
) -> AsyncGenerator[Piece, None]:
    """`stream` for an event loop: cancelling it closes the connection at once, even to a silent engine."""
    call = _Call(base_url, model, messages, temperature, max_tokens, stop, api_key)
    with _explained(call.url, timeout):
        async with _client(httpx.AsyncClient, call.url, timeout) as client:
            async with client.stream(**call.request()) as response:
                if response.status_code != 200:
                    await response.aread()
                    _check(response, call.url, model)
                async for chunk in response.aiter_bytes():
                    if text := call.read(chunk):
                        yield Piece(text)
                    if call.done:
                        break
            yield call.last()


def endpoint(base_url: str) -> str:
    """The URL with its /v1, given with or without; ServeError where it is none, or carries a password."""
    parts = urlsplit(base_url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServeError(base_url or "url", "is no http URL", "give something like http://127.0.0.1:8000")
    if parts.username or parts.password:
        raise ServeError(parts.hostname, "the URL carries a password", "put the key into VLLM_API_KEY")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}/v1"


@dataclass
class _Call:
    """One request, and what has come of its answer so far."""

    base_url: str
    model: str
    messages: Sequence[dict[str, str]]
    temperature: float
    max_tokens: int
    stop: Sequence[str]
    api_key: str | None
    began: float = 0.0
    first: float | None = None
    tokens: int | None = None
    finish: str | None = None
    rest: bytes = b""  # of a line that is not complete yet
    done: bool = False

    def __post_init__(self) -> None:
        self.url = endpoint(self.base_url)

    def request(self) -> dict[str, Any]:
        """What httpx sends; the clock starts here."""
        self.began = time.monotonic()
        body = {
            "model": self.model,
            "messages": list(self.messages),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.stop:
            body["stop"] = list(self.stop)
        url = f"{self.url}/chat/completions"
        return {"method": "POST", "url": url, "json": body, "headers": _headers(self.api_key)}

    def read(self, chunk: bytes) -> str:
        """The text these bytes complete, often none.

        Lines end with a line feed alone: httpx's own line iterator would also break an answer that holds
        U+2028.
        """
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        if len(self.rest) > LONGEST_LINE:
            raise ServeError(self.url, "sent a line without an end", "check the URL and port")
        return "".join(self._line(line) for line in lines)

    def _line(self, line: bytes) -> str:
        if self.done or not line.startswith(b"data:"):
            return ""  # the empty line between events, or a comment that keeps the connection open
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            self.done = True
            return ""
        event = _event(data, self.url)
        self.tokens = (event.get("usage") or {}).get("completion_tokens", self.tokens)
        text = ""
        for choice in event.get("choices") or ():
            self.finish = choice.get("finish_reason") or self.finish
            text += (choice.get("delta") or {}).get("content") or ""
        if text and self.first is None:
            self.first = time.monotonic() - self.began
        return text

    def last(self) -> Piece:
        """The measures. A server that is being stopped ends its streams politely: without a reason to finish,
        the answer is cut."""
        if self.finish is None or self.finish in ("abort", "error"):
            raise ServeError(self.url, "the engine stopped in the middle of the answer", ALIVE)
        seconds = time.monotonic() - self.began
        return Piece(finish=self.finish, tokens=self.tokens, seconds=seconds, first=self.first)


def _event(data: bytes, url: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise ServeError(url, "sent something that is no part of an answer", "check the URL and port")
    if event.get("error"):
        raise ServeError(url, f"the engine failed in the middle of the answer: {_message(event)}", ALIVE)
    return event


def _check(answer: httpx.Response, url: str, model: str) -> None:
    """Raise ServeError for every status but 200."""
    status = answer.status_code
    if status == 200:
        return
    try:
        message = _message(answer.json())
    except ValueError:
        message = answer.reason_phrase
    if status in (401, 403):
        raise ServeError(url, "the server wants another API key", "set VLLM_API_KEY to the key it was started with")
    if status == 404:
        raise ServeError(url, f"no such endpoint or model {model}: {message}", "choose a model that the server lists")
    if "chat template" in message:
        raise ServeError(url, f"{model} has no chat template", "serve a chat model, or pass vLLM --chat-template FILE")
    if "context length" in message or "max_tokens" in message:
        raise ServeError(url, message, "clear the conversation, or ask for fewer tokens")
    if status >= 500:
        raise ServeError(url, f"the server answers {status}: {message}", ALIVE)
    raise ServeError(url, f"the server refuses ({status}): {message}", "change the request")


def _message(body: Any) -> str:
    """The human part of an error body, in one short line."""
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message", "") if isinstance(error, dict) else str(error)
    return " ".join(str(text).split())[:LONGEST] or "no reason given"


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
    host = urlsplit(url).hostname or ""
    limits = httpx.Timeout(timeout, connect=min(CONNECT, timeout))
    # A proxy from the environment is for the world outside, never for this machine.
    return kind(timeout=limits, trust_env=not ports.is_loopback(host))


def _headers(api_key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
