"""Plain streaming from any OpenAI-compatible URL, with an error where the other side dies, stalls or refuses.

It knows HTTP and requests, and leaves what an answer says to `answer_events`; it knows nothing about vLLM's processes
or about pages.

Not over the `openai` package, which was tried: it collects a line without an end for ever, may send OPENAI_API_KEY to
any URL, and needs as many lines around it as this file has (docs/log.md, 2026-11-28).
"""

import contextlib
import re
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from hubplugin.errors import ServeError
from serve import ports
from serve.answer_events import ALIVE, URL_AND_PORT, Answer, Said, message
from serve.catalogue import Listed, read

TIMEOUT = 120.0  # seconds of silence; the first token of a long prompt on a CPU needs patience
CONNECT = 5.0  # seconds

# What some servers refuse of a request: the words that name it, and what is sent instead.
ADAPTATIONS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "stream_options": (("stream_options", "include_usage"), None),  # then the answer has no count of tokens
    "max_tokens": (("'max_completion_tokens' instead",), "max_completion_tokens"),  # reasoning models at OpenAI
    "seed": (('"seed"', "'seed'", '\\"seed\\"'), None),  # Mistral's and Google's, where every key must be known
}
PASSWORD = re.compile(r"(?<=//)[^/]*@")  # of a URL that is shown
_adapted: dict[tuple[str, str], set[str]] = {}  # by URL and model, so that only the first request is refused

Client = TypeVar("Client", httpx.Client, httpx.AsyncClient)


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The last one of a stream says nothing, and it alone carries the measures."""

    text: str = ""
    reasoning: str = ""  # what a server sends apart from the text
    finish: str | None = None  # stop | length | ..., as the server says
    tokens: int | None = None  # completion tokens as the server counts them; None where it does not say
    seconds: float | None = None  # from sending the request to the end of the answer
    first: float | None = None  # seconds from sending the request to the first text or reasoning
    seed: int | None = None  # that the server took; None where none was given, or where it takes none

    @property
    def tokens_per_second(self) -> float | None:
        """Completion tokens over the whole time, the wait for the first one included."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


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
        answer = client.get(_address(base_url, "models"), headers=_headers(api_key))
    if answer.status_code in (404, 405) and known:
        return [Listed(known)]
    _check(answer, url, "")
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
    api_key: str | None = None,
    timeout: float = TIMEOUT,
) -> Iterator[Piece]:
    """The answer to a conversation, piece by piece; the last piece carries tokens and seconds.

    Closing the iterator closes the connection, which makes the server stop generating. Raises ServeError
    where the server cannot be reached, refuses, reports an error, closes or aborts in the middle of the
    answer, or is silent for `timeout` seconds.
    """
    call = _Call(base_url, model, messages, temperature, max_tokens, stop, seed, api_key)
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


async def astream(
    base_url: str,
    model: str,
    messages: Sequence[dict[str, str]],
    *,
    temperature: float,
    max_tokens: int,
    stop: Sequence[str] = (),
    seed: int | None = None,
    api_key: str | None = None,
    timeout: float = TIMEOUT,
) -> AsyncGenerator[Piece, None]:
    """`stream` for an event loop: cancelling it closes the connection at once, even to a silent engine."""
    call = _Call(base_url, model, messages, temperature, max_tokens, stop, seed, api_key)
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


def endpoint(base_url: str) -> str:
    """The URL as servers are asked under it: with the path that was given, with /v1 where there is none.

    Its query is sent and not shown, since some servers take keys there. ServeError where it is no URL, or carries a
    password.
    """
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 65536:
        raise ServeError(
            PASSWORD.sub("", base_url) or "url", "is no http URL", "give something like http://127.0.0.1:8000"
        )
    if url.userinfo:
        raise ServeError(url.host, "the URL carries a password", "put the key into VLLM_API_KEY")
    path = url.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/models").rstrip("/") or "/v1"
    return str(url.copy_with(path=path, query=None, fragment=None))


def _address(base_url: str, path: str) -> httpx.URL:
    """Where a request goes: `path` under the endpoint, with the query that the URL was given with."""
    return httpx.URL(f"{endpoint(base_url)}/{path}").copy_with(query=httpx.URL(base_url.strip()).query or None)


@dataclass
class _Call:
    """One question to a server: its request, if need be another one, and what has come of the answer so far."""

    base_url: str
    model: str
    messages: Sequence[dict[str, str]]
    temperature: float
    max_tokens: int
    stop: Sequence[str]
    seed: int | None
    api_key: str | None
    began: float = 0.0
    first: float | None = None
    accepted: bool = False
    sent: frozenset[str] = frozenset()  # keys of the request

    def __post_init__(self) -> None:
        self.url = endpoint(self.base_url)
        self.answer = Answer(self.url)
        self.adapted = set(_adapted.get((self.url, self.model), ()))

    def request(self) -> dict[str, Any]:
        """What httpx sends; the clock starts here."""
        self.began = time.monotonic()
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(self.messages),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body |= ({"stop": list(self.stop)} if self.stop else {}) | ({} if self.seed is None else {"seed": self.seed})
        for key in self.adapted & body.keys():
            value, (_, instead) = body.pop(key), ADAPTATIONS[key]
            body |= {instead: value} if instead else {}
        self.sent = frozenset(body)
        url = _address(self.base_url, "chat/completions")
        return {"method": "POST", "url": url, "json": body, "headers": _headers(self.api_key)}

    def refused(self, response: httpx.Response) -> bool:
        """Whether the server wants the request in another way, which is taken from here on. Raises ServeError for
        every other status than 200."""
        if response.status_code in (400, 422):
            for key, (words, _) in ADAPTATIONS.items():
                if key in self.sent and any(word in response.text for word in words):
                    self.adapted.add(key)
                    return True
        _check(response, self.url, self.model)
        self.accepted = True
        _adapted[self.url, self.model] = self.adapted
        return False

    def piece(self, said: Said) -> Piece | None:
        """What was said, if anything was."""
        if not said:
            return None
        if self.first is None:
            self.first = time.monotonic() - self.began
        return Piece(said.text, said.reasoning)

    def last(self) -> Piece:
        """The measures. A server that is being stopped ends its streams politely: without a reason to finish,
        the answer is cut."""
        finish = self.answer.finish
        if finish is None or finish in ("abort", "error"):
            raise ServeError(self.url, "the engine stopped in the middle of the answer", ALIVE)
        seconds = time.monotonic() - self.began
        seed = self.seed if "seed" in self.sent else None
        return Piece(finish=finish, tokens=self.answer.tokens, seconds=seconds, first=self.first, seed=seed)


def _check(answer: httpx.Response, url: str, model: str) -> None:
    """Raise ServeError for every status but 200."""
    status = answer.status_code
    if status == 200:
        return
    try:
        said = message(answer.json())
    except ValueError:
        said = answer.reason_phrase
    if status in (401, 403):
        raise ServeError(url, "the server wants another API key", "set VLLM_API_KEY to the key it was started with")
    if status in (301, 302, 303, 307, 308):
        raise ServeError(url, f"leads on to {answer.headers.get('location')}", "give that server's URL")
    if status == 404 and not model:
        raise ServeError(url, f"has no list of models: {said}", "check the URL's path, or choose a model with --model")
    if status == 404:
        raise ServeError(url, f"no such endpoint or model {model}: {said}", "choose a model that the server lists")
    if "chat template" in said:
        raise ServeError(url, f"{model} has no chat template", "serve a chat model, or pass vLLM --chat-template FILE")
    if "context length" in said or "max_tokens" in said:
        raise ServeError(url, said, "clear the conversation, or ask for fewer tokens")
    if status >= 500:
        raise ServeError(url, f"the server answers {status}: {said}", ALIVE)
    raise ServeError(url, f"the server refuses ({status}): {said}", "change the request")


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


def _headers(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()
    if not key.isascii() or not key.isprintable():
        raise ServeError(
            "VLLM_API_KEY", "holds characters that no header can carry", "look for what was pasted with it"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}
