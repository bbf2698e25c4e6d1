"""One question and its answer as it grows: what the page shows after every piece, and at the end.

Knows `client` and the messages of `conversation`; nothing of the page's layout. Errors become messages.
"""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from hubplugin.errors import ServeError
from serve import client
from serve.chat_page import conversation
from serve.chat_page.conversation import Message, Turn

EAGER = 8  # pieces at the start of an answer that are drawn at once, so that a slow engine is seen to have begun
REDRAW = 0.05  # seconds between two updates of the page; every one of them carries the whole conversation
SHARE = 5  # times as long as a drawing took is waited before the next: a long answer is not drawn all the time


async def answer(
    base_url: str,
    api_key: str | None,
    text: str,
    chat: list[Message],
    turns: list[Turn],
    name: str | None,
    system: str,
    temperature: float,
    tokens: int,
) -> AsyncIterator[tuple[Any, ...]]:
    """One question and its answer as it grows: updates of the box, the page, the turns and the line under them."""
    if not text.strip():
        yield (gr.skip(),) * 4
        return
    # A question that got no answer would leave two user turns in a row, which many chat templates refuse.
    turns = [*(turns[:-1] if turns and turns[-1]["role"] == "user" else turns), {"role": "user", "content": text}]
    chat = [*chat, conversation.user(text)]
    yield gr.update(value="", submit_btn=False, stop_btn="Stop"), chat, turns, "answering …"
    said, reasoning, drawn, rest, count = "", "", 0.0, REDRAW, 0

    def grown(line: str, *, unfinished: bool) -> tuple[Any, ...]:
        shown = conversation.answer(said, reasoning, unfinished=unfinished)
        turn = {"role": "assistant", "content": said} | ({"reasoning": reasoning} if reasoning else {})
        return gr.skip(), [*chat, *shown], [*turns, turn], line

    try:
        if not name:
            raise ServeError(
                client.endpoint(base_url), "no model is chosen", "reload the page once the engine is running"
            )
        sent = _sent(system, turns)
        pieces = client.astream(base_url, name, sent, temperature=temperature, max_tokens=int(tokens), api_key=api_key)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                said, reasoning, count = said + piece.text, reasoning + piece.reasoning, count + 1
                if piece.finish:
                    yield grown(_measures(piece), unfinished=False)
                elif count <= EAGER or time.monotonic() - drawn >= rest:
                    began = time.monotonic()
                    update = grown("answering …", unfinished=True)
                    drawn = time.monotonic()
                    rest = max(REDRAW, SHARE * (drawn - began))
                    yield update
    except ServeError as error:
        cut = bool(said or reasoning)
        if cut:
            yield grown("", unfinished=False)
            chat = [*chat, *conversation.answer(said, reasoning)]
        failure = conversation.failure(error, "The answer was cut" if cut else "No answer")
        yield gr.skip(), [*chat, failure], gr.skip(), ""
    yield waiting(), gr.skip(), gr.skip(), gr.skip()


def waiting() -> Any:
    """The box as it is while nothing is answered."""
    return gr.update(submit_btn="Send", stop_btn=False)


def _sent(system: str, turns: list[Turn]) -> list[dict[str, str]]:
    """The conversation as the server is sent it: reasoning that came apart from an answer is not part of it."""
    said = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return [{"role": "system", "content": system.strip()}, *said] if system.strip() else said


def _measures(last: client.Piece) -> str:
    parts = [] if last.tokens is None else [f"{last.tokens} tokens"]
    parts += [] if last.seconds is None else [f"{last.seconds:.1f} s"]
    parts += [] if last.tokens_per_second is None else [f"**{last.tokens_per_second:.1f} tokens/s**"]
    parts += ["cut at max tokens"] if last.finish == "length" else []
    return " · ".join(parts)
