"""An answer token by token, each on a colour by its probability, as HTML. Knows tokens and text; no server, no page.

A token may hold a part of a character: tokens are joined until their bytes are whole characters.
"""

import codecs
import html as entities
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve.chat_page.markup import formulas
from serve.token_logprobs import Token

# Probabilities at which the next class begins, and how the page's legend calls the class.
CLASSES = ((0.9, "90 % and more"), (0.5, "50 to 90 %"), (0.2, "20 to 50 %"), (0.05, "5 to 20 %"), (0.0, "below 5 %"))
# Of each class: background and text. One hue and lightness alone, so that the order is seen without colours too.
LIGHT = ((None, "#1e293b"), ("#fff0dc", "#1e293b"), ("#fed7aa", "#1e293b"), ("#fb9a4b", "#1e293b"), ("#b23c08", "#fff"))
DARK = (
    (None, "#f1f5f9"),
    ("#4a2a12", "#f1f5f9"),
    ("#7f4212", "#f1f5f9"),
    ("#d97a2b", "#0f172a"),
    ("#ffd9a8", "#0f172a"),
)
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
    """A text that ends with a whole character, and the log-probability of every token in it."""

    text: str
    logprobs: tuple[float, ...]


def joined(tokens: Sequence[Token]) -> list[Piece]:
    """Tokens as pieces of text. What is no character at all becomes U+FFFD."""
    pieces, decoder = [], codecs.getincrementaldecoder("utf-8")("replace")
    text, logprobs = "", list[float]()
    for token in tokens:
        text, logprobs = text + decoder.decode(token.data), [*logprobs, token.logprob]
        if text and not decoder.getstate()[0]:
            pieces.append(Piece(text, tuple(logprobs)))
            text, logprobs = "", []
    text += decoder.decode(b"", final=True)
    return [*pieces, Piece(text, tuple(logprobs))] if logprobs else pieces


def written(pieces: Sequence[Piece]) -> str:
    """The pieces as one line that `read` takes back."""
    rows = [[piece.text, *(round(each, 4) for each in piece.logprobs)] for piece in pieces]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")) if rows else ""


def read(line: str) -> list[Piece]:
    """What `written` wrote; nothing where it is anything else."""
    try:
        rows = json.loads(line) if line else []
    except (ValueError, RecursionError):
        return []
    if not isinstance(rows, list) or not all(map(_sound, rows)):
        return []
    return [Piece(row[0], tuple(map(float, row[1:]))) for row in rows]


def _sound(row: object) -> bool:
    """Whether it is a text with log-probabilities."""
    if not isinstance(row, list) or len(row) < 2 or not isinstance(row[0], str):
        return False
    return all(isinstance(each, int | float) and not isinstance(each, bool) and -1e4 < each <= 0 for each in row[1:])


def html(pieces: Sequence[Piece]) -> str:
    """The answer with its legend, as one line."""
    shown = "".join(_token(piece, first=index == 0) for index, piece in enumerate(pieces))
    legend = "".join(f'<span class="t{number}">{name}</span>' for number, (_, name) in enumerate(CLASSES))
    return (
        f'<div class="tokens"><p>Probability of each token: <span class="legend">{legend}</span></p>'
        f'<div class="sequence">{shown}</div></div>'
    )


def _token(piece: Piece, *, first: bool) -> str:
    text = piece.text.translate(formulas.MARKS).translate(UNSEEN) or "∅"
    # Lines and per cents are marks of the page's own parser (`markdown`).
    text = entities.escape(text).replace("\n", "&#10;").replace("%", "&#37;").replace("\t", "&#9;")
    number = _class(piece.logprobs)
    return f'<span class="t{number}" tabindex="{0 if first else -1}" title="{_words(piece.logprobs)}">{text}</span>'


def _class(logprobs: Sequence[float]) -> int:
    together = math.exp(sum(logprobs))
    return next(number for number, (least, _) in enumerate(CLASSES) if together >= least)


def _words(logprobs: Sequence[float]) -> str:
    """The probability, in words."""
    together = f"{_percent(sum(logprobs))}, log-probability {sum(logprobs):.3f}"
    if len(logprobs) == 1:
        return together
    return f"{together}; {len(logprobs)} tokens make this text: {', '.join(map(_percent, logprobs))}"


def _percent(logprob: float) -> str:
    percent = 100 * math.exp(logprob)
    return "below 0.01 &#37;" if percent < 0.01 else f"{percent:.3g} &#37;"


def _colours(prefix: str, scale: Sequence[tuple[str | None, str]]) -> Iterator[str]:
    for number, (background, text) in enumerate(scale):
        yield f"{prefix} .t{number} {{color: {text}" + (f"; background: {background}" if background else "") + "}"


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
""" + "\n".join([*_colours(".tokens", LIGHT), *_colours(".dark .tokens", DARK)])
