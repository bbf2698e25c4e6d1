r"""Formulas in markdown: `$$..$$`, `\[..\]`, `$..$` and `\(..\)` as rules of markdown-it, in marks for the page.

Knows how formulas are written; nothing of how they are drawn. A price is no formula, and neither is code.
"""

import html
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

# What the page is told to typeset between: characters for private use, which no answer is let through with.
INLINE = ("\ue000", "\ue001")
DISPLAY = ("\ue002", "\ue003")
LATEX_DELIMITERS: list[dict[str, str | bool]] = [
    {"left": left, "right": right, "display": display} for (left, right), display in ((DISPLAY, True), (INLINE, False))
]
MARKS = str.maketrans(dict.fromkeys("".join(INLINE + DISPLAY), "\ufffd"))

GROWING = "growing"  # key of the environment: whether more of the answer may follow
TAIL = "tail"  # key of the environment: the inline text that more may follow; absent where none may
LONGEST = 4000  # characters of a formula
LONGEST_PENDING = 200  # characters after a lone dollar that may still become a formula


@dataclass(frozen=True)
class Delimiters:
    """A way to write a formula. `inside` is one character of what may stand between both, as a regex."""

    left: str
    right: str
    display: bool
    inside: str

    @property
    def whole(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.left) + f"({self.inside}{{1,{LONGEST}}}?)" + re.escape(self.right))


# A backslash takes the next character with it: `\$` and the `\\[2pt]` of a matrix neither open nor close.
ALL = (
    Delimiters("$$", "$$", True, r"(?:\\[\s\S]|[^\\$]|\$(?!\$))"),
    Delimiters(r"\[", r"\]", True, r"(?:\\[^\[\]]|[^\\])"),
    Delimiters(r"\(", r"\)", False, r"(?:\\[^()]|[^\\])"),
    Delimiters("$", "$", False, r"(?:\\[\s\S]|[^\\$])"),
)
OPENERS = {each.left: each for each in ALL}
FENCE = re.compile(r"\s*(?:```|~~~)")
# A number that goes on as a formula does: `$5$`, `$2x$`, `$3 \times 4$`, but not the `$5 or 10$` of a price.
NUMBER = re.compile(r"\d[\d.,]*\s*(?:$|[-\\^_{}=+*/<>!|(),]|[a-zA-Z](?![a-zA-Z]))")


def install(parser: MarkdownIt) -> None:
    """Add the rules to a parser."""
    options = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    parser.block.ruler.before("fence", "formula", _block, options)  # type: ignore[arg-type]
    parser.inline.ruler.before("escape", "formula", _inline)
    parser.add_render_rule("formula", _render)
    parser.add_render_rule("unfinished", _render_unfinished)


def _inline(state: StateInline, silent: bool) -> bool:
    delimiters = _opened(state.src, state.pos)
    if delimiters is None:
        return False
    closed = delimiters.right in state.src[state.pos + len(delimiters.left) :]
    found = delimiters.whole.match(state.src, state.pos, state.posMax) if closed else None
    if found and _is_formula(delimiters, found, state.src):
        if not silent:
            token = state.push("formula", "", 0)
            token.content, token.meta = found[1], {"display": delimiters.display}
        state.pos = found.end()
        return True
    if not found and state.env.get(TAIL) == state.src and _may_become_one(delimiters, state.src[state.pos :]):
        if not silent:  # as it was written: markdown's own marks inside a formula are none
            state.push("text", "", 0).content = state.src[state.pos : state.posMax]
        state.pos = state.posMax
        return True
    if delimiters.left == "$$":  # so that the second dollar opens nothing either
        if not silent:
            state.pending += "$$"
        state.pos += 2
        return True
    return False


def _block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A formula that stands alone, on one line or over many: lines of it may look like lists or headings."""
    begin = state.bMarks[start] + state.tShift[start]
    delimiters = OPENERS.get(state.src[begin : begin + 2])
    if delimiters is None or not delimiters.display or state.is_code_block(start):
        return False
    closed = delimiters.right in state.src[begin + 2 :]
    if not closed and not (state.env.get(GROWING) and len(state.src) - begin <= LONGEST):
        return False
    text = ""
    for line in range(start, end):
        part = state.getLines(line, line + 1, state.blkIndent, True)
        text = text + part if text else part.lstrip()
        if (line > start and _ends_block(state, line, part)) or len(text) > LONGEST:
            return False
        if closed and delimiters.right in part and (found := delimiters.whole.match(text)):
            after = text[found.end() :].strip()
            if after not in ("", ".", ",", ";") or not found[1].strip() or not _balanced(found[1]):
                return False  # part of a sentence: the inline rule's
            return silent or _push(state, "formula", found[1] + after, start, line + 1)
    if not state.env.get(GROWING) or end != len(state.bMarks) - 1:
        return False
    return silent or _push(state, "unfinished", text, start, end)


def _ends_block(state: StateBlock, line: int, text: str) -> bool:
    """Whether a line can be no part of a formula: one that leaves the list item, or a fence."""
    return (not state.isEmpty(line) and state.sCount[line] < state.blkIndent) or FENCE.match(text) is not None


def _push(state: StateBlock, kind: str, content: str, start: int, end: int) -> bool:
    token = state.push(kind, "", 0)
    token.content, token.meta, token.map, token.block = content, {"display": True}, [start, end], True
    state.line = end
    return True


def _opened(text: str, at: int) -> Delimiters | None:
    return OPENERS.get(text[at : at + 2]) or OPENERS.get(text[at : at + 1])


def _is_formula(delimiters: Delimiters, found: re.Match[str], text: str) -> bool:
    inside = found[1]
    if not inside.strip() or not _balanced(inside) or (not delimiters.display and "`" in inside):
        return False
    if delimiters.left != "$":
        return True
    before, after = text[: found.start()][-1:], text[found.end() :][:1]
    if before.isalnum() or after.isdigit() or after.isupper() or inside != inside.strip():
        return False  # US$5, $5-$10, $HOME/$USER, $5 and $10
    return not inside[0].isdigit() or NUMBER.match(inside) is not None


def _may_become_one(delimiters: Delimiters, rest: str) -> bool:
    if delimiters.left != "$":
        return True
    return len(rest) <= LONGEST_PENDING and rest[1:2].strip() != "" and not rest[1].isdigit()


def _balanced(latex: str) -> bool:
    """Whether the page's typesetter would find the end of it: it counts braces."""
    braces = re.sub(r"\\[\s\S]", "", latex)
    return braces.count("{") == braces.count("}") and not latex.endswith("\\")


def _render(self: Any, tokens: Any, index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    token = tokens[index]
    left, right = DISPLAY if token.meta["display"] else INLINE
    formula = f"{left}{html.escape(token.content.strip(), quote=False)}{right}"
    return f"<p>{formula}</p>\n" if token.block else formula


def _render_unfinished(self: Any, tokens: Any, index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    return f'<p class="unfinished">{html.escape(tokens[index].content.strip())}</p>\n'
