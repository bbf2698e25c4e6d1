"""Code of a conversation as HTML: characters as they are, coloured by Pygments in the classes that the page styles.

Knows languages and classes; no markdown and no page.
"""

import html

from pygments import token
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

LONGEST_COLOURED = 20_000  # characters; more are shown plain, since an answer is coloured again each time it grows

# Gradio's style sheet is Prism's.
PRISM = {
    token.Comment: "comment",
    token.Comment.Preproc: "property",
    token.Keyword: "keyword",
    token.Keyword.Constant: "boolean",
    token.Keyword.Type: "class-name",
    token.Literal.Number: "number",
    token.Literal.String: "string",
    token.Literal.String.Regex: "regex",
    token.Name.Attribute: "attr-name",
    token.Name.Builtin: "builtin",
    token.Name.Builtin.Pseudo: "keyword",
    token.Name.Class: "class-name",
    token.Name.Decorator: "decorator",
    token.Name.Function: "function",
    token.Name.Tag: "tag",
    token.Name.Variable: "variable",
    token.Operator: "operator",
    token.Operator.Word: "keyword",
    token.Punctuation: "punctuation",
    token.Generic.Deleted: "deleted",
    token.Generic.Inserted: "inserted",
}

# Gradio's own button: the page copies the text of what is around it.
COPY = (
    '<button title="copy" class="copy_code_button">'
    '<span class="copy-text"><svg viewBox="0 0 15 15" width="15" height="15" fill="none" stroke="currentColor">'
    '<path d="M4.5 4.5h8v8h-8z M2.5 10.5h-1v-9h9v1"></path></svg></span>'
    '<span class="check"><svg viewBox="0 0 17 17" width="17" height="17" fill="none" stroke="currentColor">'
    '<path d="m13.8 4.8-7.4 7.4-3.2-3.2"></path></svg></span></button>'
)


def block(code: str, language: str) -> str:
    """A block of code with its button. An unknown language is shown without colours."""
    name = f' class="language-{html.escape(language)}"' if language else ""
    return f'<div class="code_wrap">{COPY}<pre><code{name}>{_coloured(code, language)}</code></pre></div>\n'


def _coloured(code: str, language: str) -> str:
    try:
        lexer = get_lexer_by_name(language) if language and len(code) <= LONGEST_COLOURED else None
    except ClassNotFound:
        lexer = None
    if lexer is None:
        return html.escape(code)
    # Not get_tokens, which takes empty lines at the start away and turns tabs and line ends into others.
    return "".join(_span(kind, text) for _, kind, text in lexer.get_tokens_unprocessed(code))


def _span(kind: token._TokenType, text: str) -> str:
    known = next((PRISM[each] for each in reversed(kind.split()) if each in PRISM), None)
    return f'<span class="token {known}">{html.escape(text)}</span>' if known else html.escape(text)
