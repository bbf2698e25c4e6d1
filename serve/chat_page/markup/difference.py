"""The first place where two answers differ, marked in both. Knows HTML of `markdown`; nothing of models and pages.

Words are compared as they are read: bullets, bold and spaces do not count. A formula counts as one word.
"""

import html as entities
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from serve.chat_page.markup import formulas

# Scripts without spaces between words are read character by character.
SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
SIGN = r"!-/:-@\[-`{-~"  # ASCII's punctuation; `&` begins an entity
TOKEN = re.compile(
    r"(?P<unseen><!--.*?-->|<[^>]*>|&#10;|\s+)"
    f"|(?P<formula>{formulas.INLINE[0]}.*?{formulas.INLINE[1]}|{formulas.DISPLAY[0]}.*?{formulas.DISPLAY[1]})"
    rf"|(?P<word>&\#?\w+;|[{SINGLE}]|[{SIGN}]|[^\s{SIGN}{SINGLE}]+)",
    re.DOTALL,
)
ENDS = re.compile(r"(?:\s|&#10;|</[^>]*>)*\Z")


@dataclass(frozen=True)
class Word:
    """A word of one part of an answer, and where it stands in that part's HTML."""

    part: int
    kind: str  # of the part, such as reasoning
    text: str
    begin: int
    end: int
    formula: bool


@dataclass(frozen=True)
class Difference:
    """Both answers' parts as HTML with a mark at the first difference, and that place in numbers and words."""

    parts: tuple[list[str], list[str]]
    same: int  # words at the start that are the same in both
    words: tuple[str | None, str | None]  # that differ first; None: the answer has ended


def marked(first: Sequence[tuple[str, str]], second: Sequence[tuple[str, str]]) -> Difference:
    """Two answers, each in parts: (kind, HTML). Without a mark where all words are the same."""
    read = _words(first), _words(second)
    pairs = list(takewhile(lambda pair: _key(pair[0]) == _key(pair[1]), zip(*read, strict=False)))
    at, same = len(pairs), sum(any(map(str.isalnum, word.text)) for word, _ in pairs)
    if at == len(read[0]) == len(read[1]):
        return Difference(([part for _, part in first], [part for _, part in second]), same, (None, None))
    parts = _with_mark(first, read[0], at), _with_mark(second, read[1], at)
    words = tuple(words[at].text if at < len(words) else None for words in read)
    return Difference(parts, same, (words[0], words[1]))


def _key(word: Word) -> tuple[str, str]:
    return word.kind, word.text


def _words(parts: Sequence[tuple[str, str]]) -> list[Word]:
    return [
        Word(index, kind, _text(found), found.start(), found.end(), found.lastgroup == "formula")
        for index, (kind, part) in enumerate(parts)
        for found in TOKEN.finditer(part)
        if found.lastgroup != "unseen"
    ]


def _text(found: re.Match[str]) -> str:
    text = found[0][1:-1] if found.lastgroup == "formula" else found[0]
    return entities.unescape(text)


def _with_mark(parts: Sequence[tuple[str, str]], words: Sequence[Word], at: int) -> list[str]:
    """Around the word, before a formula (its signs are not HTML's), or after the last word of an answer that ended."""
    marked = [part for _, part in parts]
    if at < len(words):
        word = words[at]
        part, end = marked[word.part], word.begin if word.formula else word.end
        marked[word.part] = f"{part[: word.begin]}{_mark(part[word.begin : end])}{part[end:]}"
    elif marked:
        closing = ENDS.search(marked[-1])
        place = closing.start() if closing else len(marked[-1])
        marked[-1] = f"{marked[-1][:place]}{_mark('')}{marked[-1][place:]}"
    return marked


def _mark(word: str) -> str:
    """The page's style says it in words for screen readers, so that nobody copies those words."""
    return f'<mark class="differs{"" if word else " place"}">{word}</mark>'
