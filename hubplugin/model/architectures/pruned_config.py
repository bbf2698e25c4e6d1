"""The config.json of a pruned model: of its base's class where that class takes the shape, else of one that does.

What each class takes was found by loading such models in transformers and in vLLM (tests/test_successor.py). Knows
sizes and keys; no weights and no method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hubplugin.errors import PlanError
from hubplugin.manifest.steps.prune import Prune
from hubplugin.model.architectures.architecture import Dimensions, block_configs
from hubplugin.model.architectures.families import FAMILIES, PER_LAYER, Family

UNEVEN_HEADS = "UnevenHeadsForCausalLM"  # our plugin's class for vLLM: DeciLM with query heads layer by layer
BIASES = ("attention_bias", "mlp_bias")


def config(
    base: Mapping[str, Any], family: Family, before: Dimensions, after: Dimensions, sources: Sequence[int], where: str
) -> dict[str, Any]:
    """The config.json of a model of the sizes `after`, whose blocks are the base's `sources`.

    Raises PlanError where no class that vLLM serves takes the shape.
    """
    entries = {key: value for key, value in base.items() if key != "auto_map"}  # plain tensors of a known family
    if after == before:
        return entries
    entries |= _sizes(family, before, after)
    if after.layers != before.layers:
        entries |= _layers(base, before, sources)
    model_type = str(base["model_type"])
    if after.blocks:
        return entries | _per_layer(base, model_type, after, where)
    fewer = (after.heads, after.kv_heads) != (before.heads, before.kv_heads)
    if FAMILIES[model_type].computed_head_dim and fewer:
        if _windows(base):
            what = "vLLM serves a qwen2 of other heads as a llama, which looks through no windows, and this model does"
            raise PlanError(where, what, "prune ffn or layers")
        entries = _as(entries, model_type, "llama", attention_bias=True, mlp_bias=False)
        model_type = "llama"
    if fewer and FAMILIES[model_type].whole_heads and after.hidden % after.heads:
        uneven = f"{after.heads} heads do not divide a hidden_size of {after.hidden}"
        uneven += f", which transformers asks of {model_type}"
        if model_type != "llama" or any(entries.get(key) for key in BIASES):
            raise PlanError(where, f"{uneven}, and no class without that rule has the rest of it", _other(after))
        entries = _as(entries, model_type, "mistral", sliding_window=None)
        for key in BIASES:
            entries.pop(key, None)
    return entries


def supported_heads(
    prune: Prune,
    base: Mapping[str, Any],
    family: Family,
    before: Dimensions,
    heads: Sequence[tuple[int, int]],
    where: str,
) -> tuple[tuple[int, int], ...]:
    """Of (query heads, KV heads) that a target may choose among, those of which some class takes the shape.

    Raises PlanError where blocks are to differ and no class takes such blocks.
    """
    if prune.layout == "per-layer":
        _may_differ(base, str(base["model_type"]), where)
    biased = {**base, **({key: True for key in BIASES} if prune.bias else {})}
    supported = []
    for choice in heads:
        after = replace(before, heads=choice[0], kv_heads=choice[1])
        try:
            config(biased, family, before, after, range(before.layers), where)
        except PlanError:
            continue
        supported.append(choice)
    return tuple(supported)


def biases(prune: Prune | None, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys that give every linear of a block a bias, where the step asks for it; `config` is the pruned model's.

    Raises PlanError where its class has none.
    """
    if not (prune and prune.bias):
        return {}
    keys = FAMILIES[config["model_type"]].every_bias
    if not keys:
        raise PlanError(where, f"linears of {config['model_type']} have no biases to fit", "remove it")
    return {key: True for key in keys}


def _windows(base: Mapping[str, Any]) -> bool:
    """Whether layers look through a window, in a family where config.json decides it."""
    return bool(base.get("sliding_window") and (base["model_type"] == "mistral" or base.get("use_sliding_window")))


def _sizes(family: Family, before: Dimensions, after: Dimensions) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    if after.ffn != before.ffn:
        entries["intermediate_size"] = after.ffn
    if (after.heads, after.kv_heads) != (before.heads, before.kv_heads):
        entries |= {"num_attention_heads": after.heads, "num_key_value_heads": after.kv_heads}
        entries["head_dim"] = after.head_dim  # no longer hidden_size / num_attention_heads
    return entries


def _layers(base: Mapping[str, Any], before: Dimensions, sources: Sequence[int]) -> dict[str, Any]:
    """Keys that go by the number of layers, or name one thing for each."""
    entries: dict[str, Any] = {"num_hidden_layers": len(sources)}
    types = base.get("layer_types")
    if types is None and FAMILIES[base["model_type"]].alternating:
        types = ["full_attention" if index % 2 else "sliding_attention" for index in range(before.layers)]
    if types is not None:
        entries["layer_types"] = [types[index] for index in sources]
    if base.get("max_window_layers") is not None:
        entries["max_window_layers"] = sum(index < base["max_window_layers"] for index in sources)
    return entries


def _per_layer(base: Mapping[str, Any], model_type: str, after: Dimensions, where: str) -> dict[str, Any]:
    """What makes a DeciLM of a config.json; keys of other classes stay and are not read."""
    _may_differ(base, model_type, where)
    if not after.blocks[0].heads:
        raise PlanError(where, "vLLM's DeciLM cannot do without the first layer's attention", "remove fewer")
    entries = _as(
        {}, model_type, PER_LAYER, block_configs=block_configs(after), head_dim=after.head_dim, sliding_window=None
    )
    if len({block.heads for block in after.blocks if block.heads}) > 1:
        entries["architectures"] = [UNEVEN_HEADS]
    return entries | ({"attention_bias": True} if FAMILIES[model_type].biased else {})


def _may_differ(base: Mapping[str, Any], model_type: str, where: str) -> None:
    """Raises PlanError where blocks of this model may not differ."""
    if not FAMILIES[model_type].uneven or _windows(base):
        raise PlanError(
            f"{where}.layout",
            f"vLLM's class for blocks that differ is a llama without windows, and this is {model_type}",
            "leave layout out: all layers then lose alike",
        )
    if base.get("hidden_act", "silu") != "silu":
        raise PlanError(f"{where}.layout", "vLLM's class for blocks that differ knows silu alone", "leave layout out")


def _as(entries: Mapping[str, Any], model_type: str, other: str, **keys: Any) -> dict[str, Any]:
    """The same model as one of another class."""
    kept = {key: value for key, value in entries.items() if key not in FAMILIES[model_type].class_keys}
    return {**kept, "model_type": other, "architectures": [FAMILIES[other].native], **keys}


def _other(after: Dimensions) -> str:
    fits = [str(count) for count in range(1, after.heads + 1) if after.hidden % count == 0]
    return f"keep {', '.join(fits)} heads, or prune ffn or layers"
