"""What a server's answer says: server-sent events, or the one JSON body of a server that does not stream.

Knows the shapes that OpenAI-compatible servers give an answer; no HTTP.
"""

import json
from dataclasses import dataclass
from typing import Any

from hubplugin.errors import ServeError
from serve import token_logprobs
from serve.token_logprobs import Token

LONGEST_LINE = 2**20  # bytes of one event; a token's is a few hundred
LONGEST_BODY = 2**24  # bytes of an answer that is not streamed
LONGEST = 300  # characters of a server's message that are shown

ALIVE = "see whether the engine is still running, and start it again"
URL_AND_PORT = "check the URL and port"


@dataclass
class Said:
    """What some bytes of an answer add to it: its text, and the reasoning that a server sends apart from it."""

    text: str = ""
    reasoning: str = ""
    logprobs: tuple[Token, ...] = ()  # its tokens, where the server sends them with their log-probabilities
    events: int = 0  # in which it came; mostly one for each token

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.logprobs)

    def __add__(self, more: "Said") -> "Said":
        return Said(
            self.text + more.text,
            self.reasoning + more.reasoning,
            self.logprobs + more.logprobs,
            self.events + more.events,
        )


@dataclass
class Answer:
    """An answer as its bytes come in. `where` is the server's URL, for errors."""

    where: str
    finish: str | None = None  # stop | length | ..., as the server says
    tokens: int | None = None  # completion tokens, where the server counts them
    prompt: tuple[int, ...] = ()  # the question's tokens, where the server says them
    done: bool = False
    rest: bytes = b""  # of a line that is not complete yet; of a body that is not streamed, all of it
    event: str = ""  # the name of the event that the next data belong to
    plain: bool | None = None  # whether the answer is one JSON body; None until the first byte tells
    half: str = ""  # the first half of a character that a server sent as two

    def read(self, chunk: bytes) -> Said:
        """What these bytes complete, often nothing.

        Lines end with a line feed alone: httpx's own line iterator would also break an answer that holds
        U+2028.
        """
        self.rest += chunk
        if self.plain is None and (begin := self.rest.lstrip(b"\xef\xbb\xbf \r\n\t")):
            self.plain, self.rest = begin[:1] in b"{[<", begin
        if self.plain:
            if len(self.rest) > LONGEST_BODY:
                raise ServeError(self.where, "sent an answer without an end", URL_AND_PORT)
            return Said()
        *lines, self.rest = self.rest.split(b"\n")
        if len(self.rest) > LONGEST_LINE:
            raise ServeError(self.where, "sent a line without an end", URL_AND_PORT)
        return self._lines(lines)

    def end(self) -> Said:
        """What the bytes that no line feed followed say, once the connection is closed."""
        rest, self.rest = self.rest, b""
        if self.done or not rest:
            return Said()
        if self.plain:
            return self._taken(_parsed(rest, self.where))
        try:
            return self._lines([rest])
        except ServeError:  # half a line: the answer is cut, which `finish` tells
            return Said()

    def _lines(self, lines: list[bytes]) -> Said:
        said = Said()
        for line in lines:
            said = said + self._line(line)
        return said

    def _line(self, line: bytes) -> Said:
        name, _, value = line.strip().partition(b":")
        if not name:
            self.event = self.event if value else ""  # the empty line after an event, or a comment: keep-alive
        elif name == b"event":
            self.event = value.strip().decode(errors="replace")
        elif name in (b"data", b"error") and not self.done:  # llama.cpp writes `error:` lines
            if value.strip() == b"[DONE]":
                self.done = True
            elif value.strip():
                event = _parsed(value, self.where)
                if name == b"error" or self.event == "error":
                    raise _failed(event, self.where)
                return self._taken(event)
        return Said()

    def _taken(self, event: Any) -> Said:
        """The part of the answer in one event, or in a whole body."""
        if not isinstance(event, dict):
            raise _foreign(self.where)
        if event.get("error") or event.get("object") == "error":
            raise _failed(event, self.where)
        usage = event.get("usage")
        counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
        self.tokens = counted if isinstance(counted, int) else self.tokens
        prompt = event.get("prompt_token_ids")
        if isinstance(prompt, list) and all(isinstance(each, int) for each in prompt):
            self.prompt = tuple(prompt)
        said = Said()
        for choice in event.get("choices") or ():
            if not isinstance(choice, dict):
                raise _foreign(self.where)
            self.finish = choice.get("finish_reason") or self.finish
            delta = choice.get("delta") or choice.get("message") or {}
            if not isinstance(delta, dict):
                raise _foreign(self.where)
            thought = _text(delta.get("reasoning_content") or delta.get("reasoning"), "text")
            said.reasoning += _sound(thought + _text(delta.get("content"), "thinking", strings=False))
            said.logprobs += token_logprobs.read(choice)
            said.text += self._whole(_text(delta.get("content"), "text") + _text(delta.get("refusal"), "text"))
        said.events = 1 if said else 0
        return said

    def _whole(self, text: str) -> str:
        """The text with halves of a character joined: what JSON escapes in two may come in two events."""
        text, self.half = self.half + text, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self.half = text[:-1], text[-1]
        return _sound(text)


def _sound(text: str) -> str:
    """Text without halves of characters, which no page and no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def message(body: Any) -> str:
    """The human part of an error body, in one short line."""
    return " ".join(_human(body).split())[:LONGEST] or "no reason given"


def _human(body: Any) -> str:
    if isinstance(body, list):  # Google's, and each fault of FastAPI's
        return "; ".join(f"{_human(each)} {_place(each)}".strip() for each in body)
    if isinstance(body, dict):
        return next((_human(body[key]) for key in ("error", "message", "detail", "msg") if body.get(key)), "")
    return "" if body is None else str(body)


def _place(fault: Any) -> str:
    """Which key of the request a fault is about."""
    place = fault.get("loc") if isinstance(fault, dict) else None
    return f"({'.'.join(map(str, place))})" if isinstance(place, list) else ""


def _text(content: Any, kind: str, *, strings: bool = True) -> str:
    """The text of a content, which is a string, or a list of parts of which those of one kind count."""
    if isinstance(content, str):
        return content if strings else ""
    if not isinstance(content, list):
        return ""
    text = ""
    for part in content:
        if isinstance(part, dict) and part.get("type", "text") == kind:
            text += _text(part.get(kind, part.get("text")), "text")
        elif isinstance(part, str) and strings:
            text += part
    return text


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise _foreign(where) from error


def _foreign(where: str) -> ServeError:
    return ServeError(where, "sent something that is no part of an answer", URL_AND_PORT)


def _failed(event: Any, where: str) -> ServeError:
    return ServeError(where, f"the engine failed in the middle of the answer: {message(event)}", ALIVE)
