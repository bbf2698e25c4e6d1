"""The tokenizer of a folder, as transformers loads it. Knows one folder. Knows no tokens."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hubplugin.errors import GateError, one_line


def read(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises GateError where transformers cannot load it."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GateError(
            f"{folder}: tokenizer", f"cannot be loaded: {one_line(error)}", "put the model's tokenizer files beside it"
        ) from error
