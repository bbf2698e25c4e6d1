"""Markdown of a conversation as HTML, in which no markup of the text's own is live. Knows markdown; no page, no server.

This is the only renderer of it: the page is given HTML, so that nothing is escaped for one parser and read by another.
"""

import html as entities
import re
from collections.abc import MutableMapping, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from serve.chat_page.markup import code_blocks, formulas, growing

# A link leads to the web or to a mail; everything else (javascript:, data:, a path of this page) stays text.
SAFE_LINK = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
SCHEME = re.compile(r"(?<![a-z0-9.+-])https?$", re.IGNORECASE)
URL = re.compile(r"https?://[^\s<>\"'`|\\^{}\ue000-\ue003]+", re.IGNORECASE)
RUN = re.compile(r"`+")


def html(text: str, *, unfinished: bool = False) -> str:
    """The text as HTML, one line for each block and an empty line between two.

    `unfinished` says that more is to follow: what a next piece may turn into other markup is not shown as markup yet.
    """
    text = (growing.settled(text) if unfinished else text).translate(formulas.MARKS)
    env: dict[str, Any] = {formulas.GROWING: unfinished}
    tokens = PARSER.parse(text, env)
    shown, level, begin = [], 0, 0
    for index, token in enumerate(tokens, 1):
        level += token.nesting
        if level == 0:
            shown.append(_one_line(PARSER.renderer.render(tokens[begin:index], PARSER.options, env)))
            begin = index
    return "\n\n".join(shown)


def _one_line(block: str) -> str:
    """A block as the page's own parser passes it on: it would end at an empty line, and `%%%` are marks of it."""
    return block.strip().replace("\n", "&#10;").replace("%%%", "&#37;%%")


def _mark_tail(state: StateCore) -> None:
    if state.env[formulas.GROWING] and state.tokens:
        inlines = [token for token in state.tokens if token.type == "inline"]
        if inlines and all(
            token.type.endswith("_close") for token in state.tokens[state.tokens.index(inlines[-1]) + 1 :]
        ):
            state.env[formulas.TAIL] = inlines[-1].content


def _unfinished_code(state: StateInline, silent: bool) -> bool:
    """Inline code whose end has not come yet, so that no emphasis is read out of `__init__` in the meantime."""
    if state.src[state.pos] != "`" or state.env.get(formulas.TAIL) != state.src:
        return False
    run = RUN.match(state.src, state.pos)
    if run is None or re.search(rf"(?<!`){run[0]}(?!`)", state.src[run.end() :]):
        return False
    if not silent:
        state.push("code_inline", "code", 0).content = state.src[run.end() : state.posMax]
    state.pos = state.posMax
    return True


def _bare_url(state: StateInline, silent: bool) -> bool:
    """A URL in the text is a link, without the punctuation after it. markdown-it's own rule needs a library more."""
    if state.src[state.pos] != ":" or state.linkLevel > 0 or not (scheme := SCHEME.search(state.pending)):
        return False
    found = URL.match(state.src, state.pos - len(scheme[0]), state.posMax)
    if found is None:
        return False
    url = found[0].rstrip(".,:;!?*_~")
    while url.endswith(")") and url.count(")") > url.count("("):
        url = url[:-1].rstrip(".,:;!?*_~")
    if not silent:
        state.pending = state.pending[: -len(scheme[0])]
        state.push("link_open", "a", 1).attrs = {"href": state.md.normalizeLink(url)}
        state.push("text", "", 0).content = url
        state.push("link_close", "a", -1)
    state.pos += len(url) - len(scheme[0])
    return True


def _fence(self: Any, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    language = (tokens[index].info.split() or [""])[0]
    return code_blocks.block(tokens[index].content, language)


def _link(self: Any, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer")
    return str(self.renderToken(tokens, index, options, env))


def _image(self: Any, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    """A link: the page fetches nothing from elsewhere (`policy`), so an image would be an empty frame."""
    source = entities.escape(str(tokens[index].attrs["src"]))
    alt = self.renderInlineAsText(tokens[index].children, options, env) or str(tokens[index].attrs["src"])
    return f'<a href="{source}" target="_blank" rel="noopener noreferrer">{entities.escape(alt)}</a>'


def _table(self: Any, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    """Wide tables scroll by themselves, instead of making the page wide."""
    return '<div class="table"><table>' if tokens[index].nesting == 1 else "</table></div>\n"


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "tasklists": True})
    parser.enable(["table", "strikethrough"])
    parser.disable(["html_block", "html_inline"])
    parser.validateLink = lambda url: bool(SAFE_LINK.match(url))  # type: ignore[method-assign]
    formulas.install(parser)
    parser.core.ruler.before("inline", "tail", _mark_tail)
    parser.inline.ruler.before("backticks", "unfinished_code", _unfinished_code)
    parser.inline.ruler.before("escape", "bare_url", _bare_url)
    for name, rule in (
        ("fence", _fence),
        ("code_block", _fence),
        ("link_open", _link),
        ("image", _image),
        ("table_open", _table),
        ("table_close", _table),
    ):
        parser.add_render_rule(name, rule)
    return parser


PARSER = _parser()
