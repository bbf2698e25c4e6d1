"""One model's side of a turn: its conversation, its answer as it grows, and what is measured of it.

Knows `client` and the messages of `conversation`; nothing of the other side. Errors become messages.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from hubplugin.errors import ServeError
from serve import client
from serve.chat_page import conversation
from serve.chat_page.conversation import Message, Turn
from serve.chat_page.markup import tokens
from serve.chat_page.turns import divergence
from serve.token_logprobs import Token

ANSWERING = "answering …"
STARTING = "its engine is started first …"  # by an endpoint that starts engines when they are asked
BUSY = (ANSWERING, STARTING)
STOPPED = "stopped"
NO_LOGPROBS = " · the server sent no log-probabilities"


@dataclass(frozen=True)
class Settings:
    """How every model is asked."""

    system: str
    temperature: float
    max_tokens: int
    seed: int | None = None
    top_p: float | None = None  # None: the server's own
    colour: str = tokens.NOTHING  # what tokens are coloured by: nothing, their probability, KL to the other model


@dataclass(eq=False)
class Side:
    """A model with its own conversation, and its answer as far as it has come."""

    name: str | None
    chat: list[Message]  # as the page shows it
    turns: list[Turn]  # as it was said
    said: str = ""
    reasoning: str = ""
    line: str = ANSWERING
    error: ServeError | None = None
    over: bool = False
    changed: bool = True  # since it was drawn last
    answer: list[Message] = field(default_factory=list)  # as it was drawn last
    sent: list[dict[str, str]] = field(default_factory=list)  # the conversation as it was asked
    used: str = ""  # the settings, in words
    logprobs: list[Token] = field(default_factory=list)  # where they were asked for
    kl: Sequence[float | None] = ()  # of each token to the other model, in nats, where it was measured
    note: str = ""  # on that, in words
    prompt: tuple[int, ...] = ()  # the question's tokens, where the server says them
    tokens: str = ""  # all of that as `tokens.written` writes it, when it was drawn last
    below: list[Message] = field(default_factory=list)  # what is folded away under the answer
    progress: "Progress" = field(default_factory=lambda: Progress())

    def ask(self, text: str) -> None:
        """Add the question. One that got no answer would leave two user turns in a row, which many chat templates
        refuse."""
        asked = self.turns[:-1] if self.turns and self.turns[-1]["role"] == "user" else self.turns
        self.turns = [*asked, {"role": "user", "content": text}]
        self.chat = [*self.chat, conversation.user(text)]

    async def listen(self, base_url: str, api_key: str | None, settings: Settings, news: asyncio.Event) -> None:
        """Take the answer, and tell of every piece. However it ends, `over` is true then."""
        try:
            if not self.name:  # asked before the page had the list of models
                rows = await asyncio.to_thread(client.catalogue, base_url, api_key=api_key)
                if not rows:
                    raise ServeError(client.endpoint(base_url), "serves no model", "start it with one")
                self.name = rows[0].name
            self.sent = _sent(settings.system, self.turns)
            pieces = client.astream(
                base_url,
                self.name,
                self.sent,
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                seed=settings.seed,
                top_p=settings.top_p,
                logprobs=settings.colour != tokens.NOTHING,
                likeliest=divergence.LIKELIEST if settings.colour == tokens.KL else 0,
                api_key=api_key,
            )
            self.used, self.progress = _used(settings, settings.seed), Progress(time.monotonic())
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    self.said, self.reasoning = self.said + piece.text, self.reasoning + piece.reasoning
                    self.logprobs += piece.logprobs
                    self.progress.count(piece)
                    if piece.finish:
                        self.line = _measures(piece, started=self.line == STARTING)
                        self.line += NO_LOGPROBS if settings.colour != tokens.NOTHING and not self.logprobs else ""
                        self.used, self.prompt = _used(settings, piece.seed), piece.prompt
                    self.changed = True
                    news.set()
        except ServeError as error:
            self.error, self.line = error, ""
        finally:
            self.over = self.changed = True
            news.set()

    @property
    def complete(self) -> bool:
        """Whether there is an answer, to its end."""
        return self.over and self.error is None

    def draw(self) -> None:
        """Bring the answer's messages up to date."""
        began = bool(self.said or self.reasoning)
        self.answer = []
        self.draw_tokens()
        if began or self.complete:
            self.answer = conversation.answer(self.said, self.reasoning, unfinished=not self.over)
        if self.error:
            title = "The answer was cut" if began else "No answer"
            self.answer = [*self.answer, conversation.failure(self.error, title)]
        self.changed = False

    def draw_tokens(self) -> None:
        """Bring what is folded away under the answer up to date."""
        self.tokens = tokens.written(tokens.joined(self.logprobs, self.kl), self.note)
        self.below = conversation.token_by_token(self.tokens) if self.over else []

    def shown(self) -> list[Message]:
        """The conversation with the answer."""
        return [*self.chat, *self.answer, *self.below]

    def told(self) -> list[Turn]:
        """The turns with the answer, where there is any of it, and with how it came about: as one that is stopped while
        it is not over."""
        if not (self.said or self.reasoning or self.complete):
            return self.turns
        turn = {"role": "assistant", "content": self.said, "reasoning": self.reasoning, "model": self.name or ""}
        if self.error is None:
            line = self.line if self.over else " · ".join([STOPPED, *self.progress.measures()])
            turn |= {"settings": self.used, "measures": line.replace("**", ""), "tokens": self.tokens}
        return [*self.turns, {key: value for key, value in turn.items() if value or key == "content"}]


@dataclass
class Progress:
    """What can be measured of an answer that was not waited for: no server counts its tokens."""

    began: float = 0.0
    first: float | None = None
    last: float = 0.0
    events: int = 0
    tokens: int = 0  # with log-probabilities, which are all where there are any

    def count(self, piece: client.Piece) -> None:
        """Take a piece that has come now."""
        if piece.finish:
            return
        self.last = time.monotonic()
        self.first = self.last if self.first is None else self.first
        self.events, self.tokens = self.events + piece.events, self.tokens + len(piece.logprobs)

    def measures(self) -> list[str]:
        """Up to the last piece, in words. Without log-probabilities an event counts as a token, as it mostly is one."""
        if self.first is None:
            return []
        about, count = ("", self.tokens) if self.tokens else ("about ", self.events)
        seconds = self.last - self.began
        return [
            f"{about}{count} tokens",
            f"{seconds:.1f} s",
            f"{about}{count / max(seconds, 1e-3):.1f} tokens/s",
            f"first after {self.first - self.began:.2f} s",
        ]


def _sent(system: str, turns: list[Turn]) -> list[dict[str, str]]:
    """The conversation as the server is sent it: reasoning that came apart from an answer is not part of it."""
    said = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return [{"role": "system", "content": system.strip()}, *said] if system.strip() else said


def _measures(last: client.Piece, *, started: bool) -> str:
    parts = [] if last.tokens is None else [f"{last.tokens} tokens"]
    parts += [] if last.seconds is None else [f"{last.seconds:.1f} s"]
    parts += [] if last.tokens_per_second is None else [f"**{last.tokens_per_second:.1f} tokens/s**"]
    parts += [] if last.first is None else [f"first after {last.first:.2f} s" + ", with its engine's start" * started]
    parts += ["cut at max tokens"] if last.finish == "length" else []
    parts += [] if last.seed is None else [f"seed {last.seed}"]
    return " · ".join(parts)


def _used(settings: Settings, seed: int | None) -> str:
    parts = [f"temperature {settings.temperature:g}", f"max tokens {settings.max_tokens}"]
    parts += [] if settings.top_p is None else [f"top-p {settings.top_p:g}"]
    parts += [] if seed is None else [f"seed {seed}"]
    parts += [f"system prompt: {settings.system.strip()}"] if settings.system.strip() else []
    return ", ".join(parts)
