"""What tests of calibration data share: sources, files of rows, and what the pico tokenizer makes of them."""

import json
from pathlib import Path
from typing import Any

import pico
import pytest

from hubplugin.compress.calibration import calibration_data
from hubplugin.compress.calibration.calibration_data import TokenSequences
from hubplugin.errors import CalibrationError
from hubplugin.manifest.source import Source

LENGTH = 16


def source(**fields: Any) -> Source:
    return Source.model_validate({"samples": 1, "sequence_length": LENGTH, **fields})


def make(folder: Path, tokenizer: Any = None, base: Path | None = None, **fields: Any) -> TokenSequences:
    return calibration_data.tokens(source(**fields), tokenizer or pico.tokenizer(), folder, base, shuffle=False)


def refused(folder: Path, tokenizer: Any = None, base: Path | None = None, **fields: Any) -> CalibrationError:
    with pytest.raises(CalibrationError) as caught:
        make(folder, tokenizer, base, **fields)
    return caught.value


def jsonl(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def text_of(batch: TokenSequences) -> str:
    return str(pico.tokenizer().decode(batch.ids.flatten().tolist()))


def rendered(folder: Path, row: Any, tokenizer: Any = None, **fields: Any) -> str:
    """The text that calibration sees of one row, which is repeated so that there is enough of it."""
    tokenizer = tokenizer or pico.tokenizer()
    files = [jsonl(folder, [row] * 120)]
    text = text_of(make(folder, tokenizer, files=files, sequence_length=1500, **fields)).rstrip("\ufffd")
    return text[: next(period for period in range(1, len(text)) if text.startswith(text[period:]))]


def templated(template: str | dict[str, str]) -> Any:
    """The pico tokenizer with another chat template, or with named ones."""
    tokenizer = pico.tokenizer()
    tokenizer.chat_template = template
    return tokenizer
