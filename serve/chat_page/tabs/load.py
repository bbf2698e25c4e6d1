"""A small bounded load on one model: so many streams at once, and what their answers took. Knows `client`; no page.

Every answer is timed by this program's clock, the way of a user: the network and the server's queue are in it.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from statistics import median

from hubplugin.errors import ServeError
from serve import client

STREAMS = (1, 2, 4, 8)  # that may be chosen
FEWEST_TOKENS, MOST_TOKENS = 8, 128  # of an answer
ANSWERS = 2  # of each stream, one after the other
WARM_TOKENS = 4  # of the answer before the first that is timed: an engine may have to start for it
LONGEST = 1800.0  # seconds, of everything together
BEAT = 1.0  # seconds without news after which progress is told again: who has left is noticed when told
SUBJECTS = ("rivers", "clocks", "bridges", "bread", "maps", "trains", "gardens", "ships")
QUESTION = "Write a long text about {subject}, part {part}. Do not stop early."


@dataclass(frozen=True)
class Plan:
    """What is asked for. Raises ServeError where it is more than is allowed, or nothing."""

    name: str
    streams: tuple[int, ...]
    tokens: int

    def __post_init__(self) -> None:
        if not self.name:
            raise ServeError("bench", "no model is chosen", "choose one, or reload the page once the server has one")
        if not self.streams:
            raise ServeError("bench", "no number of streams is chosen", "choose at least one")
        if not set(self.streams) <= set(STREAMS):
            known = ", ".join(map(str, STREAMS))
            raise ServeError("bench", "that number of streams is not offered", f"choose among {known}")
        if not FEWEST_TOKENS <= self.tokens <= MOST_TOKENS:
            fix = f"choose {FEWEST_TOKENS} to {MOST_TOKENS}"
            raise ServeError("bench", f"{self.tokens} tokens per answer are not offered", fix)


@dataclass(frozen=True)
class Answer:
    """What one answer took. What the server did not say, or did not send, is None."""

    first: float | None  # seconds to its first piece
    seconds: float
    tokens: int | None

    @property
    def per_token(self) -> float | None:
        """Seconds per token after the first."""
        if self.first is None or not self.tokens or self.tokens < 2:
            return None
        return (self.seconds - self.first) / (self.tokens - 1)


@dataclass(frozen=True)
class Round:
    """All answers with one number of streams."""

    streams: int
    seconds: float  # from the first request to the end of the last answer
    answers: tuple[Answer, ...]

    @property
    def tokens(self) -> int | None:
        """Of all answers; None where the server does not count them."""
        counts = [answer.tokens for answer in self.answers if answer.tokens is not None]
        return sum(counts) if len(counts) == len(self.answers) else None

    @property
    def first(self) -> float | None:
        """Median seconds to the first token."""
        return _median([answer.first for answer in self.answers])

    @property
    def slowest_first(self) -> float | None:
        """The longest wait for a first token, in seconds."""
        return max((answer.first for answer in self.answers if answer.first is not None), default=None)

    @property
    def per_token(self) -> float | None:
        """Median seconds per token after the first."""
        return _median([answer.per_token for answer in self.answers])

    @property
    def tokens_per_second(self) -> float | None:
        """Of all streams together."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


@dataclass(frozen=True)
class Progress:
    """How far a load has come."""

    rounds: tuple[Round, ...] = ()  # that are complete
    streams: int = 0  # of the round that runs; 0 before the first
    answered: int = 0  # in all rounds
    asked: int = 0  # answers in all rounds
    stopped: bool = False
    error: ServeError | None = None


@dataclass(eq=False)
class Load:
    """A plan that is carried out. One event loop."""

    base_url: str
    api_key: str | None
    plan: Plan
    news: asyncio.Queue[Answer | ServeError | None] = field(default_factory=asyncio.Queue)  # None: it is to stop

    def stop(self) -> None:
        """End it: its connections are closed, and what is complete stays."""
        self.news.put_nowait(None)

    async def run(self) -> AsyncGenerator[Progress, None]:
        """Carry it out. However it ends, the last progress says so and no connection is left; closing it closes them
        too."""
        until = time.monotonic() + LONGEST
        asked = ANSWERS * sum(self.plan.streams)
        rounds: list[Round] = []
        answered = 0
        for streams in (0, *self.plan.streams):
            begun = time.monotonic()
            answers: list[Answer] = []
            tasks = [asyncio.create_task(self._stream(number, streams)) for number in range(streams or 1)]
            try:
                while len(answers) < (ANSWERS * streams or 1):
                    yield Progress(tuple(rounds), streams, answered, asked)
                    try:
                        came = await self._next(until)
                    except TimeoutError:
                        continue
                    if not isinstance(came, Answer):
                        yield Progress(tuple(rounds), streams, answered, asked, came is None, came)
                        return
                    answers.append(came)
                    answered += bool(streams)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            if streams:
                rounds.append(Round(streams, time.monotonic() - begun, tuple(answers)))
        yield Progress(tuple(rounds), 0, answered, asked)

    async def _next(self, until: float) -> Answer | ServeError | None:
        """What comes next. TimeoutError where nothing does for a while."""
        if time.monotonic() > until:
            where, fix = client.endpoint(self.base_url), "choose fewer streams or tokens"
            return ServeError(where, f"not done after {LONGEST:g} s", fix)
        return await asyncio.wait_for(self.news.get(), BEAT)

    async def _stream(self, number: int, streams: int) -> None:
        """Ask one question after the other; of the stream before all rounds, one."""
        try:
            for part in range(ANSWERS if streams else 1):
                text = QUESTION.format(subject=SUBJECTS[number], part=part + 1 + ANSWERS * streams)
                self.news.put_nowait(await self._answer(text, self.plan.tokens if streams else WARM_TOKENS))
        except ServeError as error:
            self.news.put_nowait(error)

    async def _answer(self, text: str, tokens: int) -> Answer:
        messages: Sequence[dict[str, str]] = [{"role": "user", "content": text}]
        pieces = client.astream(
            self.base_url, self.plan.name, messages, temperature=0.0, max_tokens=tokens, api_key=self.api_key
        )
        last = client.Piece()
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                last = piece
        return Answer(last.first, last.seconds or 0.0, last.tokens)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
