"""Sentences on a tab, as HTML: ours, and errors. What a server said is text here, never markup."""

import html

from hubplugin.errors import ServeError


def note(text: str) -> str:
    """A sentence of ours; what stands between backticks is typed."""
    parts = html.escape(text, quote=False).split("`")
    return f"<p>{''.join(f'<code>{part}</code>' if at % 2 else part for at, part in enumerate(parts))}</p>"


def failure(error: ServeError) -> str:
    """An error with its three parts."""
    where, what, fix = (html.escape(part) for part in (str(error.where), error.what, error.fix))
    return f'<div class="failure" role="alert"><b>{what}</b><br><small>{where}: {fix}</small></div>'
