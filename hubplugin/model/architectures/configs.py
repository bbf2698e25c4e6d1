"""config.json of a model folder, refused where the model needs code of its own, and corrected where its weights say
otherwise. Knows families; no torch.
"""

from pathlib import Path
from typing import Any

from hubplugin.checkpoint.model_folder import read_json
from hubplugin.errors import HubError
from hubplugin.model.architectures import tied_head
from hubplugin.model.architectures.families import FAMILIES


def read_config(path: Path, where: str) -> dict[str, Any]:
    """config.json as a mapping; its head is not tied where the folder's weights hold one with values of its own.

    Raises HubError where it is broken or the model needs code of its own.
    """
    config = read_json(path / "config.json", where)
    optional = path / "tokenizer_config.json"
    for name, values in (
        (optional.name, read_json(optional, where) if optional.exists() else {}),
        ("config.json", config),
    ):
        if values.get("auto_map") and not _native(values):
            raise HubError(
                f"{where}: {name}: auto_map",
                "the model needs remote code, which is never run",
                "use a conversion that transformers loads by itself, or a local copy without auto_map",
            )
    return {**config, "tie_word_embeddings": False} if tied_head.has_own_values(path, config) else config


def _native(config: dict[str, Any]) -> bool:
    """Whether the code a config.json offers is what transformers ships under the same name anyway (as with phi3)."""
    offered, row = config["auto_map"], FAMILIES.get(str(config.get("model_type")))
    name = offered.get("AutoModelForCausalLM") if isinstance(offered, dict) else None
    return row is not None and isinstance(name, str) and name.rsplit(".", 1)[-1] == row.native
