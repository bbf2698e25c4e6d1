"""Wanda-sp: Wanda's |weight| times norm of its input, summed over a unit of o or down (arXiv 2312.11983, 2306.11695).

The baseline that the FLAP paper defines: the same share in every layer, nothing compensated.
"""

import torch
from torch import Tensor, nn

from pruning_rivals import choose
from pruning_rivals.calibration import Calibration
from pruning_rivals.parts import Shape


def prune(model: nn.Module, calibration: Calibration, keep: int, heads: bool = True, everywhere: bool = False) -> None:
    """Remove the units of lowest score, the same count in every layer or (not in the paper) wherever they are."""
    shape = Shape.of(model)
    channels, groups = scores(model, calibration)
    if everywhere:
        kept = choose.everywhere(shape, *choose.densities(shape, channels, groups), shape.all - keep)
    else:
        kept = choose.uniform(shape, channels, groups, shape.all - keep, heads)
    choose.cut(model, kept)


def scores(model: nn.Module, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """Of channels and of KV groups."""
    shape, inputs, layers = Shape.of(model), calibration.inputs(), model.model.layers
    down = torch.stack([layer.mlp.down_proj.weight.abs().sum(0) for layer in layers]) * inputs["down"].square.sqrt()
    out = torch.stack([layer.self_attn.o_proj.weight.abs().sum(0) for layer in layers]) * inputs["o"].square.sqrt()
    return down, out.reshape(shape.layers, shape.groups, -1).sum(-1)
