"""Token ids against the vocabulary: a tokenizer may know more tokens than the model's embedding has rows.

Knows ids, a tokenizer's names for them and config.json. Knows no source.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hubplugin.checkpoint.model_folder import read_json
from hubplugin.errors import CalibrationError


def rows_of(base: Path) -> int | None:
    """The rows of a model's embedding, which a plan compares with the tensor; None where config.json is silent."""
    rows = read_json(base / "config.json", str(base)).get("vocab_size")
    return rows if isinstance(rows, int) else None


def first_unknown(ids: Sequence[int], rows: int | None) -> int | None:
    """The first id that an embedding of so many rows has no row for."""
    if rows is None or max(ids, default=0) < rows:
        return None
    return next(token for token in ids if token >= rows)


def check(ids: Sequence[int], tokenizer: Any, rows: int | None, where: str) -> None:
    """Raise CalibrationError for the first id that the embedding has no row for."""
    unknown = first_unknown(ids, rows)
    if unknown is None:
        return
    name = tokenizer.convert_ids_to_tokens(unknown)
    raise CalibrationError(
        where,
        f"its token {name!r} has the id {unknown}, the tokenizer knows {len(tokenizer)} tokens, "
        f"and the model's embedding has {rows} rows",
        "use data without this token, or a base whose embedding has a row for it",
    )


def note(tokenizer: Any, rows: int | None) -> str:
    """What to say of a tokenizer with tokens beyond the embedding; empty where it has none."""
    beyond = [token for token in tokenizer.get_vocab().values() if rows is not None and token >= rows]
    return f"the tokenizer has {len(beyond)} tokens beyond the {rows} rows of the embedding" if beyond else ""
