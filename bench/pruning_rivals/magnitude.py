"""Magnitude pruning by units: the smallest Euclidean norm of all weights of a unit goes. Uses no calibration data."""

import torch
from torch import Tensor, nn

from pruning_rivals import choose, parts
from pruning_rivals.calibration import Calibration
from pruning_rivals.parts import Shape


def prune(model: nn.Module, calibration: Calibration, keep: int, heads: bool = True, everywhere: bool = False) -> None:
    """Remove the units of smallest norm, per layer or over all layers.

    everywhere  one ranking for all layers and both kinds of units, by the root of the mean square
    """
    shape = Shape.of(model)
    channels, groups = scores(model)
    budget = shape.all - keep
    if everywhere:
        kept = choose.everywhere(shape, *choose.densities(shape, channels.square(), groups.square()), budget)
    else:
        kept = choose.uniform(shape, channels, groups, budget, heads)
    choose.cut(model, kept)


def scores(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Norms of channels [layers, FFN channels] and of KV groups [layers, groups]."""
    squares = [sums(layer, {name: weight.square() for name, weight in weights(layer)}) for layer in model.model.layers]
    channels, groups = zip(*squares, strict=True)
    return torch.stack(channels).sqrt(), torch.stack(groups).sqrt()


def weights(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights of a layer's linears by name."""
    return [(name, module.weight) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]


def sums(layer: nn.Module, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Values that lie like the weights, summed over each channel and each KV group."""
    rows = {name.rpartition(".")[2]: value.sum(1) for name, value in values.items()}
    columns = {name.rpartition(".")[2]: value.sum(0) for name, value in values.items()}
    channels = rows["gate_proj"] + rows["up_proj"] + columns["down_proj"]
    attention = layer.self_attn
    count = len(rows["k_proj"]) // attention.head_dim
    groups = torch.stack(
        [
            (rows["q_proj"] + columns["o_proj"])[parts.query_rows(attention, one)].sum()
            + (rows["k_proj"] + rows["v_proj"])[parts.key_rows(attention, one)].sum()
            for one in torch.arange(count)[:, None]
        ]
    )
    return channels, groups
