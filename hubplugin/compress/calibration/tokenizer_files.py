"""The tokenizer of a model folder. Knows a folder and transformers. Knows no tokens and no data."""

from pathlib import Path
from typing import Any

from hubplugin.errors import CalibrationError, one_line


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises CalibrationError where it is missing or broken."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{folder}: tokenizer", f"cannot be loaded: {one_line(error)}", "put the model's tokenizer files beside it"
        ) from error
