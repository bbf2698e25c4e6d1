"""config.json of a model folder: refused where the model needs code of its own, corrected where its weights say
otherwise, completed where it leaves things out.

Knows families and keys; no torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubplugin.checkpoint.model_folder import read_json
from hubplugin.errors import HubError
from hubplugin.model.architectures import tied_head
from hubplugin.model.architectures.families import FAMILIES, Family

# how somebody once ran the model, or what it is not: variants leave it out, since loaders obey, and fail without the
# same packages or hand out other things than their callers expect
MISLEADING_KEYS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_attn_implementation_autoset",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "return_dict",
    "use_return_dict",
    "output_attentions",
    "_output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "torchscript",
    "is_encoder_decoder",
    "is_decoder",
    "add_cross_attention",
)
# how it was loaded, stored or used for other tasks: variants say it as the base does
STORED_KEYS = (
    "quantization_config",
    "compression_config",
    "pre_quantization_dtype",
    "_pre_quantization_dtype",
    "auto_map",
    "dtype",
    "torch_dtype",
    "use_cache",
    "_name_or_path",
    "name_or_path",
    "_commit_hash",
    "pruned_heads",
    "gradient_checkpointing",
)
NOT_OF_THE_MODEL = frozenset((*MISLEADING_KEYS, *STORED_KEYS))  # no module is built otherwise because of them
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}  # by safetensors' names
LEGAL_DTYPES = (*DTYPES.values(), "float", "half", "double")
# what transformers takes where a config.json leaves it out, by model_type
DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "gemma2": {"max_position_embeddings": 8192, "num_key_value_heads": 4},
    "phi3": {"max_position_embeddings": 4096, "pad_token_id": 32000},
    "mixtral": {"max_position_embeddings": 131072, "num_key_value_heads": 8},
    "qwen3_moe": {"max_position_embeddings": 32768, "num_key_value_heads": 4},
}


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


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the sizes that transformers takes where it leaves them out."""
    return {**DEFAULTS.get(str(config.get("model_type")), {}), **config}


def completed(config: Mapping[str, Any], family: Family, stored: str) -> dict[str, Any]:
    """A config.json with all that loaders and reports read of it, for weights stored as `stored`.

    What it leaves out is what transformers takes then: the family's class and its sizes. `MISLEADING_KEYS`, a dtype
    that is none and a padding token that the embedding has no row for would keep others from loading it.
    """
    whole = {key: value for key, value in with_defaults(config).items() if key not in MISLEADING_KEYS}
    whole["architectures"] = config.get("architectures") or [family.native]
    if (whole.get("dtype") or whole.get("torch_dtype")) not in (None, *LEGAL_DTYPES):
        whole.pop("dtype", None)
        whole["torch_dtype"] = DTYPES[stored]  # the word that old loaders know too
    padding, rows = whole.get("pad_token_id"), whole["vocab_size"]
    if isinstance(padding, int) and not -rows <= padding < rows:
        whole["pad_token_id"] = None
    return whole
