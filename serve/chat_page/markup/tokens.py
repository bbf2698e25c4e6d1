"""An answer token by token, each on a colour by its probability or by its KL to another model, as HTML.

Knows tokens and text; no server, no page. A token may hold a part of a character: tokens are joined until their bytes
are whole characters.
"""

import codecs
import html as entities
import json
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

from serve.chat_page.markup import formulas, scales
from serve.token_logprobs import Token

NOTHING, PROBABILITY, KL = "nothing", "probability", "kl"  # what tokens are coloured by
LONGEST_NOTE = 2000  # characters
# Characters that would not be seen, and what stands for them. The page's own marks of formulas are no text.
SEEN = {"\n": "↵\n", "\r": "␍", "\t": "⇥\t", "\u2028": "↵", "\u2029": "↵", "\0": "␀"} | dict.fromkeys(
    "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u200e\u200f",
    "\ufffd",  # they would turn the line around
)
UNSEEN = str.maketrans(SEEN)
# The answer is one stop of the tab key; arrows go from token to token. What is said of one stays within the answer.
KEYS = """
() => {
  if (window.tokenKeys) return;
  window.tokenKeys = true;
  document.addEventListener("focusin", event => {
    const token = event.target.closest?.(".tokens [tabindex]");
    if (!token) return;
    const place = token.getBoundingClientRect(), line = token.parentElement.getBoundingClientRect();
    token.classList.toggle("right", place.left + place.right > line.left + line.right);
  });
  const to = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1};
  document.addEventListener("keydown", event => {
    const token = event.target.closest?.(".tokens [tabindex]");
    if (!token || !(event.key in to || event.key === "Home" || event.key === "End")) return;
    event.preventDefault();
    const all = [...token.parentElement.children];
    const at = {Home: 0, End: all.length - 1}[event.key] ?? all.indexOf(token) + to[event.key];
    const next = all[at];
    if (!next) return;
    token.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
"""


@dataclass(frozen=True)
class Piece:
    """A text that ends with a whole character, with the log-probability of every token in it, and with their KL to
    another model, in nats, where that is known."""

    text: str
    logprobs: tuple[float, ...]
    kl: float | None = None


@dataclass(frozen=True)
class Coloured:
    """An answer token by token, and what is to be said of it."""

    pieces: tuple[Piece, ...] = ()
    note: str = ""

    @property
    def by(self) -> str:
        """What it is coloured by: KL where that is known of any token."""
        return KL if any(piece.kl is not None for piece in self.pieces) else PROBABILITY


def joined(tokens: Iterable[Token], kl: Iterable[float | None] = ()) -> list[Piece]:
    """Tokens as pieces of text, with the KL of each, where it was measured: tokens of one text add up. What is no
    character at all becomes U+FFFD."""
    pieces, decoder = [], codecs.getincrementaldecoder("utf-8")("replace")
    text, logprobs, parts = "", list[float](), list[float | None]()
    for token, part in zip(tokens, chain(kl, repeat(None)), strict=False):
        text += decoder.decode(token.data)
        logprobs, parts = [*logprobs, token.logprob], [*parts, part]
        if text and not decoder.getstate()[0]:
            pieces.append(Piece(text, tuple(logprobs), _sum(parts)))
            text, logprobs, parts = "", [], []
    text += decoder.decode(b"", final=True)
    return [*pieces, Piece(text, tuple(logprobs), _sum(parts))] if logprobs else pieces


def _sum(parts: Iterable[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len([*parts]) else None


def written(pieces: Collection[Piece], note: str = "") -> str:
    """The pieces as one line that `read` takes back."""
    rows: Any = [[piece.text, *(round(each, 4) for each in piece.logprobs)] for piece in pieces]
    if note and rows:
        kl = [piece.kl if piece.kl is None else float(f"{piece.kl:.3g}") for piece in pieces]
        rows = {"rows": rows, "kl": kl, "note": note}
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")) if rows else ""


def read(line: str) -> Coloured:
    """What `written` wrote; nothing where it is anything else."""
    try:
        said = json.loads(line) if line else []
    except (ValueError, RecursionError):
        return Coloured()
    said = said if isinstance(said, dict) else {"rows": said}
    rows, note = said.get("rows"), said.get("note", "")
    if not isinstance(rows, list) or not all(map(_sound, rows)):
        return Coloured()
    kl = said.get("kl", [None] * len(rows))
    if not isinstance(kl, list) or len(kl) != len(rows) or not all(map(_is_kl, kl)):
        return Coloured()
    if not isinstance(note, str) or len(note) > LONGEST_NOTE:
        return Coloured()
    return Coloured(
        tuple(Piece(row[0], tuple(map(float, row[1:])), each) for row, each in zip(rows, kl, strict=True)), note
    )


def _sound(row: object) -> bool:
    """Whether it is a text with log-probabilities."""
    if not isinstance(row, list) or len(row) < 2 or not isinstance(row[0], str):
        return False
    return all(_is_number(each) and -1e4 < each <= 0 for each in row[1:])


def _is_kl(each: Any) -> bool:
    return each is None or (_is_number(each) and 0 <= each < 1e6)


def _is_number(each: object) -> bool:
    return isinstance(each, int | float) and not isinstance(each, bool)


def html(said: Coloured) -> str:
    """The answer with its legend, as one line."""
    scale, head = (
        (scales.KL, "KL of each token, at least, in nats:")
        if said.by == KL
        else (scales.PROBABILITY, "Probability of each token:")
    )
    shown = "".join(_token(piece, said.by, first=index == 0) for index, piece in enumerate(said.pieces))
    legend = "".join(f'<span class="{name}">{words}</span>' for name, words in scale.named())
    if said.by == KL and any(piece.kl is None for piece in said.pieces):
        legend += '<span class="unknown">not known</span>'
    note = f'<p class="note">{entities.escape(said.note)}</p>' if said.note else ""
    return (
        f'<div class="tokens"><p>{head} <span class="legend">{legend}</span></p>{note}'
        f'<div class="sequence">{shown}</div></div>'
    )


def _token(piece: Piece, by: str, *, first: bool) -> str:
    text = piece.text.translate(formulas.MARKS).translate(UNSEEN) or "∅"
    # Lines and per cents are marks of the page's own parser (`markdown`).
    text = entities.escape(text).replace("\n", "&#10;").replace("%", "&#37;").replace("\t", "&#9;")
    words = _words(piece.logprobs)
    if by == PROBABILITY:
        name = scales.PROBABILITY.of(math.exp(sum(piece.logprobs)))
    else:
        name = "unknown" if piece.kl is None else scales.KL.of(piece.kl)
        words = f"{'KL not known' if piece.kl is None else f'KL at least {piece.kl:.3g} nats'}; {words}"
    return f'<span class="{name}" tabindex="{0 if first else -1}" title="{words}">{text}</span>'


def _words(logprobs: Collection[float]) -> str:
    """The probability, in words."""
    together = f"{_percent(sum(logprobs))}, log-probability {sum(logprobs):.3f}"
    if len(logprobs) == 1:
        return together
    return f"{together}; {len(logprobs)} tokens make this text: {', '.join(map(_percent, logprobs))}"


def _percent(logprob: float) -> str:
    percent = 100 * math.exp(logprob)
    return "below 0.01 &#37;" if percent < 0.01 else f"{percent:.3g} &#37;"


CSS = """
#main :is(.message-content, .prose):has(.tokens) {opacity: 1}
.tokens p {font-size: .85rem; margin: 0 0 6px}
.tokens .legend {display: inline-flex; flex-wrap: wrap; gap: 4px}
.tokens .legend span {padding: 0 8px; border-radius: 4px; border: 1px solid var(--border-color-primary)}
.tokens .sequence {white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem; line-height: 1.9}
.tokens .sequence span {border-radius: 3px; padding: 1px 0; box-decoration-break: clone; position: relative}
.tokens .sequence span {box-shadow: inset -1px 0 0 color-mix(in srgb, currentColor 15%, transparent)}
.tokens .sequence span:is(:hover, :focus) {outline: 2px solid currentColor; outline-offset: 1px}
.tokens .sequence span:focus::after {content: attr(title); position: absolute; left: 0; top: 100%; z-index: 5}
.tokens .sequence span:focus::after {margin-top: 4px; padding: 2px 8px; border-radius: 6px; white-space: normal}
.tokens .sequence span:focus::after {font-size: .8rem; line-height: 1.5; width: max-content}
.tokens .sequence span:focus::after {max-width: min(15rem, 32vw)}
.tokens .sequence span:focus::after {background: var(--body-text-color); color: var(--body-background-fill)}
.tokens .sequence span.right:focus::after {left: auto; right: 0}
.tokens .note {max-width: 70ch; line-height: 1.45; overflow-wrap: anywhere}
.tokens .unknown {opacity: .7}
""" + "\n".join(scales.css(".tokens"))
