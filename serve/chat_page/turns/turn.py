"""One question to one model or two, and their answers as they grow: when the page is drawn again, and what both have in
common at the end.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from hubplugin.errors import ServeError
from serve import client
from serve.catalogue import READY
from serve.chat_page import about, conversation
from serve.chat_page.markup import tokens
from serve.chat_page.turns import divergence
from serve.chat_page.turns.side import STARTING, Settings, Side

REDRAW = 0.05  # seconds between two updates of the page; every one of them carries the whole conversation
SHARE = 5  # times as long as a drawing took is waited before the next: a long answer is not drawn all the time


async def answer(
    base_url: str,
    api_key: str | None,
    text: str,
    sides: Sequence[Side],
    settings: Settings,
    *,
    states: bool = False,
) -> AsyncGenerator[tuple[list[Side], str], None]:
    """Ask all sides at the same time. Yields the sides that the page has to show again, and at the end, of two whole
    answers, what they have in common. Closing it closes every connection.

    states  whether the server's list says which engines run: a first token that had to wait for one says so
    """
    for side in sides:
        side.ask(text)
    yield list(sides), ""
    news = asyncio.Event()
    resting = await asyncio.to_thread(_resting, base_url, api_key) if states else set()
    for side in sides:
        if side.name in resting:
            side.line = STARTING
            news.set()
    listening = [asyncio.create_task(side.listen(base_url, api_key, settings, news)) for side in sides]
    try:
        while not all(side.over and not side.changed for side in sides):
            await news.wait()
            news.clear()
            began, changed = time.monotonic(), [side for side in sides if side.changed]
            for side in changed:
                side.draw()
            rest = max(REDRAW, SHARE * (time.monotonic() - began))
            yield changed, ""
            if running := [task for task in listening if not task.done()]:
                await asyncio.wait(running, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*listening)
        if len(sides) == 2 and all(side.complete for side in sides):
            common = _compared(*sides)
            yield list(sides), common
            if settings.colour == tokens.KL:
                await _diverge(base_url, api_key, *sides)
                yield list(sides), common
        elif settings.colour == tokens.KL:
            for side in sides:
                side.note = divergence.ALONE if len(sides) == 1 else divergence.UNFINISHED
                side.draw_tokens()
            yield list(sides), ""
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


def _compared(first: Side, second: Side) -> str:
    """Marks where both answers differ. Returns what they have in common, in words."""
    first.answer, second.answer, found = conversation.compared(first.answer, second.answer)
    literally = (first.said, first.reasoning) == (second.said, second.reasoning)
    names = [str(first.name), str(second.name)]
    names = names if names[0] != names[1] else ["the first", "the second"]
    return about.in_common(names, found.same, found.words, literally=literally)


async def _diverge(base_url: str, api_key: str | None, first: Side, second: Side) -> None:
    """Measures how far each answer's model is from the other, token by token: one after the other, since vLLM ends at
    two such requests at once to an engine that has adapters."""
    said = [
        divergence.Answered(str(side.name), side.sent, side.prompt, tuple(side.logprobs)) for side in (first, second)
    ]
    first.kl, first.note = await divergence.between(base_url, api_key, said[0], said[1])
    second.kl, second.note = await divergence.between(base_url, api_key, said[1], said[0])
    first.draw_tokens()
    second.draw_tokens()


def _resting(base_url: str, api_key: str | None) -> set[str]:
    """The models whose engines do not run now, as far as the server says."""
    try:
        rows = client.catalogue(base_url, api_key=api_key)
    except ServeError:
        return set()
    return {row.name for row in rows if row.state not in (None, READY)}
