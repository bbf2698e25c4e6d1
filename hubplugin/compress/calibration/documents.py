"""Rows to documents: the one column that holds text or a conversation, and rows that are left out.

Knows columns. Knows no file format and no network; what a tokenizer makes of the text is told elsewhere.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from hubplugin.compress.calibration import conversations
from hubplugin.compress.calibration.chat_template import ChatTemplate
from hubplugin.errors import CalibrationError
from hubplugin.manifest.source import Source
from hubplugin.progress import progress

MESSAGE_COLUMNS = ("messages", "conversations")
TEXT_COLUMNS = ("text", "content")
TOOLS = "tools"  # the column beside the messages with the schemas of their tools


@dataclass(frozen=True)
class Row:
    """One row as it was read, and where it stands."""

    values: dict[str, Any]
    where: str
    plain: bool = False  # a whole text file, which holds no conversation whatever it looks like


@dataclass(frozen=True)
class Document:
    """One text as written, or one conversation as the chat template renders it."""

    text: str
    rendered: bool
    where: str


class _UnusableError(Exception):
    """A row that cannot become a document, and what may be done about it."""

    def __init__(self, what: str, fix: str, column: str = "") -> None:
        self.what, self.fix, self.column = what, fix, column


class Template(Protocol):
    """What makes a text of a conversation."""

    def render(self, turns: list[Any], tools: Any) -> str:
        """The text. Raises ValueError with the reason where a conversation is not usable."""


class Documents:
    """The documents of a source's rows, read once; counts the rows, and those of them that were left out.

    Conversations are rendered by `template`, left out by the tokenizer's own.
    """

    def __init__(self, rows: Iterable[Row], source: Source, tokenizer: Any, template: "Template | None" = None) -> None:
        self.source, self.where = source, source.describe()
        self.read = self.skipped = 0
        self._rows, self._column = rows, source.column
        self._template = template or ChatTemplate(tokenizer, self.where, drop_nulls=source.dataset is not None)

    def __iter__(self) -> Iterator[Document]:
        for row in self._rows:
            self.read += 1
            self._column = self._column or _column(row.values, self.where)
            try:
                document = self._document(row, self._column)
            except _UnusableError as fault:
                self._leave_out(row, fault)
                continue
            if document is not None:
                yield document

    @property
    def note(self) -> str:
        """What a description says of rows left out; empty where all were used."""
        return f"; {self.skipped} of {self.read} rows left out, which could not be used" if self.skipped else ""

    def _document(self, row: Row, column: str) -> Document | None:
        """The document of a row; None where its column holds nothing."""
        found = _find(row.values, column)
        if found is None:
            raise _UnusableError(f"has no column {column!r}", f"set `column:` to one of {_names(row.values)}")
        value, siblings = found
        try:
            turns = conversations.turns_in(value) if isinstance(value, str) and not row.plain else value
            text = value if isinstance(value, str) else ""
            if isinstance(turns, list):
                text = self._template.render(turns, siblings.get(TOOLS))
            elif value is not None and not isinstance(value, str):
                raise _UnusableError(
                    f"is {type(value).__name__}",
                    f"name a column of texts or of messages, one of {_names(row.values)}",
                    column,
                )
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _UnusableError("holds half of a surrogate pair, which is no character", "mend the row") from error
        except ValueError as error:
            raise _UnusableError(str(error), "mend the row, use other data") from error
        return None if value is None else Document(text, isinstance(turns, list), row.where)

    def _leave_out(self, row: Row, fault: _UnusableError) -> None:
        """Count a row that is left out. Raises CalibrationError where the manifest allows no more of them."""
        allowed = self.source.skip
        where = f"{row.where}: {fault.column}" if fault.column else row.where
        if self.skipped == allowed:
            before = f"; {allowed} rows were left out before it" if allowed else ""
            fix = f"{fault.fix}, or let more than {allowed} such rows be left out with `skip:`"
            raise CalibrationError(where, f"{fault.what}{before}", fix)
        self.skipped += 1
        if self.skipped == 1:
            progress(f"left out: {where}: {fault.what}; up to {allowed} such rows may be")


def _column(row: dict[str, Any], where: str) -> str:
    """The column of messages or of text. Raises CalibrationError where none or several could be meant."""
    known = [name for name in (*MESSAGE_COLUMNS, *TEXT_COLUMNS) if name in row]
    if len(known) == 1:
        return known[0]
    what = f"columns {known} could all be meant" if known else f"none of {_names(row)} is a known name for text"
    raise CalibrationError(where, what, "name the column with `column:`")


def _find(row: dict[str, Any], column: str) -> tuple[Any, dict[str, Any]] | None:
    """The value of a column such as `messages` or `data.messages`, and the columns beside it; None where it is not."""
    if column in row:
        return row[column], row
    outer, _, inner = column.partition(".")
    below = row.get(outer)
    if inner and isinstance(below, str):
        try:
            below = json.loads(below)
        except (ValueError, RecursionError):
            below = None
    return _find(below, inner) if inner and isinstance(below, dict) else None


def _names(row: dict[str, Any]) -> list[str]:
    """The columns that `column:` may name, nested ones with a dot."""
    nested = (
        [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name] for name, value in row.items()
    )
    return sorted(name for names in nested for name in names)
