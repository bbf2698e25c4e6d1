"""For tests of plans: documents from a few lines, and the headers that transformers' own classes imply."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from hubplugin.checkpoint.headers import Header
from hubplugin.manifest import schema

GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
PRUNE = {"method": "prune", "ffn": 0.25}
RECOVER = {"method": "recover"}


def document(steps: list[dict[str, Any]] | dict[str, list[dict[str, Any]]], **changes: Any) -> schema.Document:
    """A manifest with these variants (or one variant V of these steps)."""
    variants = steps if isinstance(steps, dict) else {"V": steps}
    data = {"model": "o/base", "calibrate": {"self": True, "tokens": 64}, "variants": variants, **changes}
    read = schema.Manifest.model_validate(data)
    return schema.Document(path="m.yaml", text="", sha256="", manifest=read)


def config_json(config: PretrainedConfig) -> dict[str, Any]:
    """What transformers writes into config.json."""
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    return json.loads(config.to_json_string(use_diff=True))


def headers(config: PretrainedConfig, dtype: str = "BF16") -> dict[str, Header]:
    """What transformers would store for a model of this config: no weights and no code of ours."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    state = model.state_dict()
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        state.pop("lm_head.weight")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if config.model_type in EXPERTS:
        shapes = apart(shapes, *EXPERTS[config.model_type])
    return {name: Header(dtype, shape) for name, shape in shapes.items()}


EXPERTS = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}


def apart(shapes: dict[str, tuple[int, ...]], part: str, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Experts as `save_pretrained` writes them, which transformers' modules hold stacked."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        before, stacked, end = name.replace(".mlp.", f".{part}.").partition(".experts.")
        if not stacked:
            found[before] = shape
            continue
        count, outputs, inputs = shape
        kept, rows = ((names[2],), outputs) if end == "down_proj" else (names[:2], outputs // 2)
        for expert in range(count):
            found |= {f"{before}.experts.{expert}.{one}.weight": (rows, inputs) for one in kept}
    return found


def published(name: str) -> tuple[dict[str, Any], PretrainedConfig]:
    """A config.json under tests/data, raw and as transformers understands it."""
    raw = json.loads((Path(__file__).parent / "data" / f"{name}.config.json").read_text())
    return raw, AutoConfig.for_model(**raw)
