"""What happens when a question is sent, stopped, asked again or cleared. Knows the page's parts and `turn`."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import gradio as gr

from hubplugin.errors import ServeError
from serve.catalogue import Listed
from serve.chat_page import conversation, layout
from serve.chat_page.conversation import Message, Turn
from serve.chat_page.listing import one_line
from serve.chat_page.turns import turn
from serve.chat_page.turns.side import BUSY, STOPPED, Settings, Side

TURN_OVER = {"submit_btn": "Send", "stop_btn": False}  # of the box, while nothing is answered
# By the statuses: the event may have been one that does nothing while an answer grows.
SEND_IS_BACK = f"""(...lines) => ({{
    __type__: "update", ...(lines.some(line => {json.dumps(BUSY)}.includes(line)) ? {{}} : {json.dumps(TURN_OVER)})
}})"""
SETTLE = 0.3  # seconds after which no piece of a stopped answer is on its way any more
LARGEST_SEED = 2**31 - 1


def connect(parts: layout.Parts, listed: gr.State, base_url: str, api_key: str | None) -> list[Any]:
    """Let the box, the stop button and the actions do what they say. Returns the events that change what was said."""
    first, second, box, controls = parts.first, parts.second, parts.box, parts.controls
    settings = [
        listed,
        controls.model,
        controls.compare,
        controls.system,
        controls.temperature,
        controls.tokens,
        controls.seed,
        controls.top_p,
        controls.colour,
    ]
    said = [first.chat, first.turns, second.chat, second.turns]
    lines = [first.status, second.status]
    shown = [first.chat, first.turns, first.status, second.chat, second.turns, second.status]
    everything = [box, *shown, parts.difference]

    async def answer(text: str, *inputs: Any) -> AsyncIterator[tuple[Any, ...]]:
        asked = "" if _busy(inputs[4:6]) else text  # an answer that is retried is another event
        async for update in _answer(base_url, api_key, asked, *inputs[:4], *inputs[6:]):
            yield update

    async def again(*inputs: Any) -> AsyncIterator[tuple[Any, ...]]:
        text, said = _unasked(*inputs[:6])
        async for update in _answer(base_url, api_key, text, *said, *inputs[6:]):
            yield update

    asked = box.submit(answer, [box, *said, *lines, *settings], everything, concurrency_limit=32, **layout.QUIET)
    retried = parts.actions.retry.click(
        again, [*said, *lines, *settings], everything, concurrency_limit=32, **layout.QUIET
    )
    for event in (asked, retried):
        # In the browser, once it counts the event as over: Gradio ignores another one until then.
        event.then(None, lines, box, js=SEND_IS_BACK, **layout.QUIET)
    stop: dict[str, Any] = {"cancels": [asked, retried], "queue": False, **layout.QUIET}
    stopped = box.stop(_stopped, [first.turns, second.turns, *lines], [box, *lines], **stop)
    settled = stopped.then(
        _still_stopped, [*said, *lines], [box, first.chat, second.chat, *lines], queue=False, **layout.QUIET
    )
    cleared = parts.actions.clear.click(lambda: (turn_over(), [], [], "", [], [], "", ""), None, everything, **stop)
    edited = parts.actions.edit.click(_edited, [*said, *lines], everything, queue=False, **layout.QUIET)
    return [asked, retried, settled, cleared, edited]


def turn_over(text: str | None = None) -> Any:
    """The box as it is while nothing is answered; with a text, or with what is in it."""
    box: dict[str, Any] = TURN_OVER | ({} if text is None else {"value": text})
    return gr.update(**box)


async def _answer(
    base_url: str,
    api_key: str | None,
    text: str,
    chat: list[Message],
    turns: list[Turn],
    other_chat: list[Message],
    other_turns: list[Turn],
    listed: list[Listed],
    name: str | None,
    other: str,
    system: str,
    temperature: float,
    tokens: float,
    seed: str,
    top_p: float,
    colour: str,
) -> AsyncIterator[tuple[Any, ...]]:
    """Updates of everything while one model or two answer."""
    if not text.strip():
        yield (gr.skip(),) * 8
        return
    try:
        chosen = _seed(seed)
    except ServeError as error:
        yield (gr.skip(), *_skipped(2), one_line(error), *_skipped(4))
        return
    sides = [Side(name, chat, turns)]
    if other:
        sides.append(Side(other, other_chat, other_turns))
        chosen = random.randrange(LARGEST_SEED) if chosen is None and temperature else chosen
    nucleus = top_p if top_p < layout.TOP_P else None
    settings = Settings(system, temperature, int(tokens), chosen, nucleus, colour)
    states = any(row.state for row in listed)
    busy = gr.update(value="", submit_btn=False, stop_btn="Stop")
    async for changed, difference in turn.answer(base_url, api_key, text, sides, settings, states=states):
        shown = [_shown(side) if side in changed else _skipped(3) for side in sides]
        yield (busy, *shown[0], *(shown[1] if other else _skipped(3)), difference)
        busy = gr.skip()


def _busy(lines: Sequence[str]) -> bool:
    """Whether an answer grows, by both statuses."""
    return any(line in BUSY for line in lines)


def _seed(text: str) -> int | None:
    """The seed that was typed; None where there is none. Raises ServeError."""
    if not text.strip():
        return None
    if not (text.strip().isascii() and text.strip().isdecimal() and int(text) <= LARGEST_SEED):
        raise ServeError(
            "seed", "the seed is no whole number that models take", f"give one up to {LARGEST_SEED}, or none"
        )
    return int(text)


def _skipped(count: int) -> tuple[Any, ...]:
    return (gr.skip(),) * count


def _shown(side: Side) -> tuple[Any, ...]:
    return side.shown(), side.told(), side.line


def _unasked(
    chat: list[Message], turns: list[Turn], other_chat: list[Message], other_turns: list[Turn], *lines: str
) -> tuple[str, list[Any]]:
    """The last question, and both conversations without it; the other one has it where both were asked. No question
    while one is being answered."""
    text = conversation.last_question(turns)
    if text is None or _busy(lines):
        return "", [chat, turns, other_chat, other_turns]
    both = conversation.last_question(other_turns) == text
    other = [conversation.before_last(each) if both else each for each in (other_chat, other_turns)]
    return text, [conversation.before_last(chat), conversation.before_last(turns), *other]


def _edited(*inputs: Any) -> tuple[Any, ...]:
    """The last question back in the box, and out of both conversations."""
    text, (chat, turns, other_chat, other_turns) = _unasked(*inputs)
    if not text:
        return _skipped(8)
    return turn_over(text), chat, turns, "", other_chat, other_turns, "", ""


def _stopped(turns: list[Turn], other_turns: list[Turn], *lines: str) -> tuple[Any, ...]:
    """The box and the statuses once it is stopped."""
    return turn_over(), _as_stopped(lines[0], turns), _as_stopped(lines[1], other_turns)


def _is_stopped(line: str) -> bool:
    return line in BUSY or line.startswith(STOPPED)


def _as_stopped(line: str, turns: list[Turn]) -> str:
    """The status of a side that is stopped, with what was measured until then; a complete answer keeps its own."""
    if not _is_stopped(line):
        return line
    measures = turns[-1].get("measures", "") if turns else ""
    return measures if measures.startswith(STOPPED) else STOPPED


async def _still_stopped(
    chat: list[Message], turns: list[Turn], other_chat: list[Message], other_turns: list[Turn], *lines: str
) -> tuple[Any, ...]:
    """Box and status once more: a last piece of the answer may have been on its way and have overwritten them."""
    await asyncio.sleep(SETTLE)
    sides = ((chat, turns, lines[0]), (other_chat, other_turns, lines[1]))
    ended = [conversation.finished(chat, turns) if _is_stopped(line) else chat for chat, turns, line in sides]
    return turn_over(), *ended, *(_as_stopped(line, turns) for _, turns, line in sides)
