"""Fills transformers' modules, built on the meta device, with weights from a source, and empties them again.

Knows modules and names; no architecture and no file.
"""

from typing import Any

import torch
from torch import nn

from hubplugin.checkpoint.weight_source import WeightSource
from hubplugin.errors import CheckpointError


def load(module: nn.Module, source: WeightSource, prefix: str, device: str, dtype: torch.dtype) -> None:
    """Give a module all weights that a source has below a prefix. Raises CheckpointError where they do not fit."""
    state = {name: tensor.to(device, dtype) for name, tensor in source.below(prefix) if not _computed(name)}
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(prefix, f"does not fit the architecture: {error}", "pull the model again") from error
    module.requires_grad_(False)


def _computed(name: str) -> bool:
    """Whether a tensor is a table that modules compute for themselves; old checkpoints hold it."""
    return name.endswith("rotary_emb.inv_freq")


def unload(module: nn.Module) -> None:
    """Forget a module's weights; what it computed for itself stays."""
    for inner in module.modules():
        for name, weight in inner.named_parameters(recurse=False):
            setattr(inner, name, nn.Parameter(weight.to("meta"), requires_grad=False))


def fill_buffers(model: Any, device: str) -> None:
    """Rotary frequencies and the like are computed, not stored: let transformers initialise them for real."""
    for module in model.model.modules():
        empty = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
        for name in empty:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        if empty:
            model._init_weights(module)
