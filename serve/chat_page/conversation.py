"""Turns of a conversation as messages of the page: text as HTML, reasoning that folds away, errors that stay.

Knows markdown and the Chatbot's messages; no server, and not when they are drawn.
"""

import base64
import html
import re
from itertools import chain
from typing import Any

from hubplugin.errors import ServeError
from serve.chat_page.markup import difference, markdown, tokens

Message = dict[str, Any]  # role, content as HTML, and metadata where it is reasoning
# Role and content as they were said; "reasoning" where the server sends it apart; model, settings and measures of an
# answer; "tokens" with their probabilities, as `markup.tokens` writes them, where they were asked for.
Turn = dict[str, str]

# Reasoning that a server leaves in the answer. Tags that are meant as text stand in code or in a sentence. Where the
# chat template has opened it, only its end is said.
THOUGHT = re.compile(r"(?:\A|\n)[ \t]*<think>(.*?)(</think>|\Z)", re.DOTALL)
OPENED = re.compile(r"\A((?:(?!<think>).)*?\n)[ \t]*</think>[ \t]*(?:\n|\Z)", re.DOTALL)
FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)

SAID_END = "-->\n\n"
# The copy button of a message copies the message's content, which is HTML: so what was said stands in a comment before
# it. Where a page has no clipboard of its own, Gradio copies out of a text area, and the event is changed instead.
COPY_AS_SAID = r"""
() => {
  const asSaid = text => {
    const said = [...text.matchAll(/<!--said:([A-Za-z0-9+\/=]*)-->/g)].map(([_, base64]) =>
      new TextDecoder().decode(Uint8Array.from(atob(base64), byte => byte.charCodeAt(0))));
    return said.length ? said.join("\n\n") : text;
  };
  if (navigator.clipboard) {
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = text => write(asSaid(text));
  }
  document.querySelector("#difference")?.setAttribute("aria-live", "polite");
  document.addEventListener("copy", event => {
    if (event.target.tagName !== "TEXTAREA" || !event.target.value.includes("<!--said:")) return;
    event.clipboardData.setData("text/plain", asSaid(event.target.value));
    event.preventDefault();
  });
}
"""


def user(text: str) -> Message:
    """A question."""
    return _message("user", text, unfinished=False)


def answer(said: str, reasoning: str = "", *, unfinished: bool = False) -> list[Message]:
    """An answer: its reasoning, whether sent apart or within, before its text."""
    messages = []
    if reasoning:
        messages.append(_thought(reasoning, pending=unfinished and not said))
    opened = OPENED.match(said)
    if opened and not _in_code(opened[1]):
        messages.append(_thought(opened[1], pending=False))
        said = said[opened.end() :]
    at = 0
    for found in THOUGHT.finditer(said):
        if _in_code(said[at : found.start()]):
            continue
        messages += _text(said[at : found.start()], unfinished=False)
        messages.append(_thought(found[1], pending=unfinished and not found[2]))
        at = found.end()
    messages += _text(said[at:], unfinished=unfinished)
    return messages or [_message("assistant", "", unfinished=False)]


def token_by_token(line: str) -> list[Message]:
    """What is folded away under an answer: its tokens, as `tokens.written` wrote them. Copying leaves them out."""
    said = tokens.read(line)
    if not said.pieces:
        return []
    title = "how far the models are from each other" if said.by == tokens.KL else "how sure the model was"
    metadata = {"title": f"Token by token: {title}", "status": "done"}
    return [{"role": "assistant", "content": tokens.html(said), "metadata": metadata}]


def failure(error: ServeError, title: str) -> Message:
    """The error as a message that stays on the page; the model is never sent it."""
    what, fix = html.escape(error.what), html.escape(error.fix)
    content = f'<div class="failure"><b>{title}:</b> {what}<br><small>{fix}</small></div>'
    return {"role": "assistant", "content": _said(f"{title}: {error.what}\n{error.fix}") + content}


def finished(messages: list[Message], turns: list[Turn]) -> list[Message]:
    """The conversation with its last answer as if no more followed: for one that was stopped while it grew."""
    if not turns or turns[-1]["role"] != "assistant":
        return messages
    last = max((index for index, each in enumerate(messages) if each["role"] == "user"), default=-1)
    said = turns[-1]
    below = token_by_token(said.get("tokens", ""))
    return [*messages[: last + 1], *answer(said["content"], said.get("reasoning", "")), *below]


def compared(first: list[Message], second: list[Message]) -> tuple[list[Message], list[Message], difference.Difference]:
    """Two answers with a mark at the first place where they differ, and that place."""
    found = difference.marked(_parts(first), _parts(second))
    marked = (
        [{**message, "content": _prefix(message) + part} for message, part in zip(messages, parts, strict=True)]
        for messages, parts in zip((first, second), found.parts, strict=True)
    )
    return next(marked), next(marked), found


def drawn(first: list[Turn], second: list[Turn]) -> tuple[list[Message], list[Message]]:
    """Two conversations as messages. The latest answers that both gave to the same questions have their marks."""
    left, right = _exchanges(first), _exchanges(second)
    for back in range(1, min(len(left), len(right)) + 1):
        (question, answered, _), (same, other, _) = left[-back], right[-back]
        if question["content"] != same["content"]:
            break
        if answered and other:
            marked, other_marked, _ = compared(answered, other)
            left[-back], right[-back] = (question, marked, left[-back][2]), (same, other_marked, right[-back][2])
    flat = ([each for question, *below in side for each in (question, *chain(*below))] for side in (left, right))
    return next(flat), next(flat)


def _exchanges(turns: list[Turn]) -> list[tuple[Message, list[Message], list[Message]]]:
    """Every question with its answer's messages, and with its tokens."""
    found: list[tuple[Message, list[Message], list[Message]]] = []
    for turn in turns:
        if turn["role"] == "user":
            found.append((user(turn["content"]), [], []))
        elif found:
            said = answer(turn["content"], turn.get("reasoning", ""))
            found[-1] = (found[-1][0], said, token_by_token(turn.get("tokens", "")))
    return found


def _parts(messages: list[Message]) -> list[tuple[str, str]]:
    return [
        (message.get("metadata", {}).get("title", ""), message["content"][len(_prefix(message)) :])
        for message in messages
    ]


def _prefix(message: Message) -> str:
    """What stands before the HTML of a message, for its copy button."""
    return str(message["content"]).partition(SAID_END)[0] + SAID_END


def last_question(turns: list[Turn]) -> str | None:
    """What was asked last."""
    return next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), None)


def before_last(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages or turns without the last question and what followed it."""
    last = max((index for index, each in enumerate(conversation) if each["role"] == "user"), default=0)
    return conversation[:last]


def _in_code(before: str) -> bool:
    """Whether a block of code is open after this text."""
    return len(FENCE.findall(before)) % 2 == 1


def _text(text: str, *, unfinished: bool) -> list[Message]:
    return [_message("assistant", text, unfinished=unfinished)] if text.strip() else []


def _message(role: str, text: str, *, unfinished: bool) -> Message:
    return {"role": role, "content": _said(text) + markdown.html(text, unfinished=unfinished)}


def _thought(text: str, *, pending: bool) -> Message:
    message = _message("assistant", text.strip(), unfinished=pending)
    return {**message, "metadata": {"title": "Reasoning", "status": "pending" if pending else "done"}}


def _said(text: str) -> str:
    return f"<!--said:{base64.b64encode(text.encode()).decode()}{SAID_END}"
