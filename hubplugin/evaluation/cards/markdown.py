"""Foreign strings as data: names, licences, errors and the manifest, inside Markdown and YAML.

YAML is dumped, never formatted, and Markdown is escaped. Knows strings; no report and no card.
"""

import re
from typing import Any

import yaml


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def front_matter(data: dict[str, Any]) -> Markdown:
    """YAML in which every string is one line, so that none of them can look like the end of the block."""

    def one_line(value: Any) -> Any:
        if isinstance(value, dict):
            return {one_line(key): one_line(item) for key, item in value.items()}
        if isinstance(value, list):
            return [one_line(item) for item in value]
        return " ".join(value.split()) if isinstance(value, str) else value

    return Markdown(yaml.safe_dump(one_line(data), sort_keys=False, allow_unicode=True, width=float("inf")))


def escape(value: Any) -> str:
    """What every `{{ }}` of the template passes through: one line, with nothing that Markdown or HTML would act on."""
    if isinstance(value, Markdown):
        return value
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(str(value).split()))


def code(value: Any) -> Markdown:
    """An identifier as a code span, also inside a table."""
    text = " ".join(str(value).split()).replace("|", "¦")
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def fenced(text: str, language: str) -> Markdown:
    """Text verbatim in a block whose fence is longer than any inside."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return Markdown(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def shell_word(value: str) -> Markdown:
    """A name inside a block of shell commands; what no repo or folder is called cannot leave its word."""
    return Markdown(re.sub(r"[^\w./-]", "_", value, flags=re.ASCII))


def link(value: str) -> Markdown:
    """A web address as a link; anything else as code."""
    plain = re.fullmatch(r"https?://[\w.~:/?#@!$&'()*+,;=%-]+", value, re.ASCII)
    return Markdown(f"<{value}>") if plain else code(value)


def picture(name: str, caption: str) -> Markdown:
    """A picture that lies beside the card, with what is said to a reader who does not see it."""
    return Markdown(f"![{escape(caption)}]({name})")


def table_row(cells: list[str]) -> Markdown:
    """Cells, escaped, as one line of a table; an empty string is an empty cell."""
    return Markdown("|" + "".join(f" {escape(cell)} |" if cell else " |" for cell in cells))


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
