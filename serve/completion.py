"""One question to a server: its request, if need be another one, and what has come of the answer so far.

Knows what servers want of a request and refuse; leaves sending it to `client`, and what an answer says to
`answer_events`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from hubplugin.errors import ServeError
from serve import server_address
from serve.answer_events import ALIVE, Answer, Said, message
from serve.token_logprobs import Token

# What some servers refuse of a request: the words that name it, and what is sent instead.
ADAPTATIONS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "stream_options": (("stream_options", "include_usage"), None),  # then the answer has no count of tokens
    "max_tokens": (("'max_completion_tokens' instead",), "max_completion_tokens"),  # reasoning models at OpenAI
    "return_tokens_as_token_ids": (("return_tokens_as_token_ids",), None),  # vLLM's own, as the next
    "return_token_ids": (("return_token_ids",), None),
    "top_logprobs": (("top_logprobs",), None),  # then no token has any beside it
    "logprobs": (("logprobs",), None),  # reasoning models at OpenAI, with 403; then no token has one
    "seed": (('"seed"', "'seed'", '\\"seed\\"'), None),  # Mistral's and Google's, where every key must be known
}
_adapted: dict[tuple[str, str], set[str]] = {}  # by URL and model, so that only the first request is refused


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The last one of a stream says nothing, and it alone carries the measures."""

    text: str = ""
    reasoning: str = ""  # what a server sends apart from the text
    logprobs: tuple[Token, ...] = ()  # the tokens of this part, where they were asked for and the server sends them
    events: int = 0  # that this part came in; mostly one for each token
    finish: str | None = None  # stop | length | ..., as the server says
    tokens: int | None = None  # completion tokens as the server counts them; None where it does not say
    seconds: float | None = None  # from sending the request to the end of the answer
    first: float | None = None  # seconds from sending the request to the first text or reasoning
    seed: int | None = None  # that the server took; None where none was given, or where it takes none
    prompt: tuple[int, ...] = ()  # the question's tokens, where the likeliest were asked for and the server says them

    @property
    def tokens_per_second(self) -> float | None:
        """Completion tokens over the whole time, the wait for the first one included."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


@dataclass
class Call:
    """One question to a server: its request, if need be another one, and what has come of the answer so far."""

    base_url: str
    model: str
    messages: Sequence[dict[str, str]]
    temperature: float
    max_tokens: int
    stop: Sequence[str]
    seed: int | None
    top_p: float | None
    logprobs: bool
    likeliest: int
    api_key: str | None
    began: float = 0.0
    first: float | None = None
    accepted: bool = False
    sent: frozenset[str] = frozenset()  # keys of the request

    def __post_init__(self) -> None:
        self.url = server_address.endpoint(self.base_url)
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
        body |= ({} if self.top_p is None else {"top_p": self.top_p}) | ({"logprobs": True} if self.logprobs else {})
        if self.likeliest:  # each token by its number, since several may have the same text
            body |= {"logprobs": True, "top_logprobs": self.likeliest}
            body |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
        for key in self.adapted & body.keys():
            value, (_, instead) = body.pop(key), ADAPTATIONS[key]
            body |= {instead: value} if instead else {}
        self.sent = frozenset(body)
        url = server_address.address(self.base_url, "chat/completions")
        return {"method": "POST", "url": url, "json": body, "headers": server_address.headers(self.api_key)}

    def refused(self, response: httpx.Response) -> bool:
        """Whether the server wants the request in another way, which is taken from here on. Raises ServeError for
        every other status than 200."""
        if response.status_code in (400, 403, 422):
            for key, (words, _) in ADAPTATIONS.items():
                if key in self.sent and any(word in response.text for word in words):
                    self.adapted.add(key)
                    return True
        check(response, self.url, self.model)
        self.accepted = True
        _adapted[self.url, self.model] = self.adapted
        return False

    def piece(self, said: Said) -> Piece | None:
        """What was said, if anything was."""
        if not said:
            return None
        if self.first is None and (said.text or said.reasoning):
            self.first = time.monotonic() - self.began
        return Piece(said.text, said.reasoning, said.logprobs, said.events)

    def last(self) -> Piece:
        """The measures. A server that is being stopped ends its streams politely: without a reason to finish,
        the answer is cut."""
        finish = self.answer.finish
        if finish is None or finish in ("abort", "error"):
            raise ServeError(self.url, "the engine stopped in the middle of the answer", ALIVE)
        seconds = time.monotonic() - self.began
        seed = self.seed if "seed" in self.sent else None
        measures: dict[str, Any] = {"tokens": self.answer.tokens, "seconds": seconds, "first": self.first}
        return Piece(finish=finish, seed=seed, prompt=self.answer.prompt, **measures)


def check(answer: httpx.Response, url: str, model: str) -> None:
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
