"""transformers' own modules for a model, without weights: on the meta device, with the names that checkpoints use.

Knows families and sizes. Knows no weights and no file.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hubplugin.model import experts
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family
from hubplugin.model.construction import heterogeneous, settings
from serve.transformers_imports import without_sklearn

with without_sklearn():
    from transformers import AutoModelForCausalLM


class Recorder(nn.Module):
    """Stands in for a block: notes what the model calls it with and passes the hidden states on."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(block, "attention_type", None)  # some models read it from the block
        self.keywords: dict[str, Any] = {}

    def forward(self, hidden: Tensor, **keywords: Any) -> Tensor:
        """The hidden states as they are."""
        self.keywords = keywords
        return hidden


def build(config: Mapping[str, Any], family: Family, dtype: torch.dtype) -> Any:
    """transformers' model of a config.json: every linear a module of its own, blocks that differ of their sizes."""
    model = of_transformers(config, dtype)
    sizes = architecture.dimensions(config, family, "config.json")
    for index, block in enumerate(model.model.layers):
        adapt(block, family, sizes.at(index))
    return model


def of_transformers(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The model as transformers' class makes it: experts stacked, all blocks of one size."""
    read = heterogeneous.transformers_config(dict(config))
    # scaled-dot-product kernels have no soft-capping; eager attention does
    attention = "eager" if settings.softcap(read, "attn_logit_softcapping") else "sdpa"
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(read, dtype=dtype, attn_implementation=attention)
    return model.eval()


def adapt(block: nn.Module, family: Family, sizes: Dimensions) -> None:
    """Give a block of transformers' the linears of checkpoints, and its own sizes where blocks differ."""
    if family.experts:
        experts.install(block, family.experts)
    if sizes.blocks:
        heterogeneous.fit(block, family, sizes)
