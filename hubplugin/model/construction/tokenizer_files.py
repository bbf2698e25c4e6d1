"""The tokenizer of a model folder. Knows a folder and transformers. Knows no tokens and no data."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubplugin.checkpoint.model_folder import read_json
from hubplugin.errors import CalibrationError, one_line
from hubplugin.model.architectures.families import FAMILIES, PER_LAYER

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# The moment that templates get for now, so that a conversation is the same tokens on every day. It is the date that the
# templates of Llama 3 print where they know no other.
NOW = datetime(2024, 7, 26, 12, 0)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises CalibrationError where it is missing or broken."""
    from transformers import AutoTokenizer

    try:
        config = _settings(Path(folder))
        return AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of files from elsewhere; each class of tokenizers has errors of its own
        raise CalibrationError(
            f"{folder}: tokenizer", f"cannot be loaded: {one_line(error)}", "put the model's tokenizer files beside it"
        ) from error


def _settings(folder: Path) -> "PretrainedConfig | None":
    """What decides which class of tokenizers fits, as the model's modules are built from it.

    transformers would read config.json itself, and could stumble over a key that concerns no tokenizer.
    """
    from transformers import PretrainedConfig

    from hubplugin.model.construction import settings

    path = folder / "config.json"
    config = read_json(path, str(folder)) if path.is_file() else {}
    if config.get("model_type") not in FAMILIES:
        return None
    # transformers has no class for layers of different widths, and would warn of that
    read = PretrainedConfig() if config["model_type"] == PER_LAYER else settings.read(config)
    read.name_or_path = str(folder)  # transformers knows some models by it
    return read
