"""Blocks that differ in width or lack a sublayer, inside transformers' own classes, which know neither.

Knows modules and sizes; no weights, no method and no file.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import CHANNELS, KEYS, PER_LAYER, QUERIES, Family, Sublayer, Width
from hubplugin.model.architectures.pruned_config import BIASES
from hubplugin.model.construction import settings


class Absent(nn.Module):
    """Stands in for a sublayer that was removed: it adds nothing to the residual stream."""

    def __init__(self, sublayer: Sublayer) -> None:
        super().__init__()
        self._pair = sublayer.pair

    def forward(self, *inputs: Tensor, **keywords: Any) -> Any:
        """Zeros of the shape of what came in, as the sublayer would return them."""
        hidden = inputs[0] if inputs else keywords["hidden_states"]
        return (torch.zeros_like(hidden), None) if self._pair else torch.zeros_like(hidden)


def transformers_config(config: dict[str, Any]) -> PretrainedConfig:
    """A config.json as transformers' own, of a class with the same blocks; `fit` gives these their sizes."""
    return settings.read(_known(config))


def _known(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("model_type") != PER_LAYER:
        return config
    plain = {key: value for key, value in config.items() if key not in ("block_configs", "architectures")}
    if not any(config.get(key) for key in BIASES):
        return {**plain, "model_type": "mistral", "sliding_window": None}
    # of the classes with the same blocks llama has biases, but not any number of heads: `fit` gives each block its own
    return {**plain, "model_type": "llama", "num_attention_heads": 1, "num_key_value_heads": 1}


def fit(block: nn.Module, family: Family, sizes: Dimensions) -> None:
    """Give an empty block linears of these sizes, and take away the sublayers that it lacks."""
    for name, (outputs, inputs) in architecture.linear_shapes(family, sizes).items():
        old = cast(nn.Linear, block.get_submodule(name))
        if (old.out_features, old.in_features) != (outputs, inputs):
            linear = nn.Linear(inputs, outputs, old.bias is not None, device="meta", dtype=old.weight.dtype)
            parent, _, last = name.rpartition(".")
            setattr(block.get_submodule(parent), last, linear)
    for sublayer in architecture.absent(family, sizes):
        remove(block, sublayer)
    share_heads(block, family, sizes)


def remove(block: nn.Module, sublayer: Sublayer) -> None:
    """Let a sublayer of a block add nothing; its norm passes on what comes in."""
    setattr(block, sublayer.name, Absent(sublayer))
    setattr(block, sublayer.norm, nn.Identity())


def share_heads(block: nn.Module, family: Family, sizes: Dimensions) -> None:
    """Tell attention how many heads it has, where transformers does not take it from the weights."""
    if not sizes.heads:
        return
    attention = cast(Any, block.get_submodule(family.sublayers[0].name))
    attention.num_key_value_groups = sizes.heads // sizes.kv_heads
    if hasattr(attention, "num_key_value_heads"):
        attention.num_key_value_heads = sizes.kv_heads
    if attention.config.num_attention_heads != sizes.heads:  # all blocks share one config
        attention.config = copy.copy(attention.config)
        attention.config.num_attention_heads = sizes.heads
        attention.config.num_key_value_heads = sizes.kv_heads


def kept_rows(width: Width, before: Dimensions, kept: Tensor) -> dict[str, Tensor]:
    """By producer: the rows int64 that are still read where columns `kept` of their consumer stay."""
    group_size, size = before.heads // before.kv_heads, before.head_dim
    kv_heads = (kept // size // group_size).unique()  # that some kept query head reads
    keys = (kv_heads[:, None] * size + torch.arange(size, device=kept.device)).reshape(-1)
    rows_of = {CHANNELS: kept, QUERIES: kept, KEYS: keys}
    heights = {CHANNELS: before.ffn, QUERIES: before.heads * size, KEYS: before.kv_heads * size}
    kept_by_producer = {}
    for producer in width.producers:
        first, rows = 0, []
        for kind in producer.rows:
            rows.append(rows_of[kind] + first)
            first += heights[kind]
        kept_by_producer[producer.name] = torch.cat(rows)
    return kept_by_producer
