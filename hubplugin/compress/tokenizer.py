"""The tokenizer of a model folder, read without network and without code of the model's. Knows no text."""

from pathlib import Path
from typing import Any

from hubplugin.errors import CalibrationError


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises CalibrationError where it is missing or broken."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = " ".join(str(error).split())[:240] or type(error).__name__
        raise CalibrationError(
            f"{folder}: tokenizer",
            f"cannot be loaded: {cause}",
            "put the model's tokenizer files beside it",
        ) from error
