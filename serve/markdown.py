"""Text of a conversation as markdown that runs no markup of its own. Knows markdown; no page and no server."""

import html
import re

# What markdown shows as it stands: fenced, indented and inline code. A model's reasoning tags are Gradio's to show.
AS_IT_STANDS = re.compile(
    r"(^```.*?(?:^```|\Z)|^~~~.*?(?:^~~~|\Z)|^(?: {4}|\t)[^\n]*$|`[^`\n]+`|</?think>)", re.MULTILINE | re.DOTALL
)


def literal(text: str) -> str:
    """Markdown in which a tag is text: `List<int>` is to be read, not to vanish as an unknown element."""
    parts = AS_IT_STANDS.split(text)  # every second one is code
    parts[::2] = [html.escape(part, quote=False).replace("&gt;", ">") for part in parts[::2]]
    return "".join(parts)
