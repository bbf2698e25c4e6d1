"""FLAP: channels whose input hardly fluctuates go, and a bias stands in for what they gave on average (2312.11983).

Score of a column of o or down: variance of its input times the squared norm of its weights. Scores are standardised
within each layer and kind, so that one threshold decides over all layers (the paper's adaptive structure), and the
output of what is removed is replaced by W_removed @ mean(input).
"""

import torch
from torch import Tensor, nn

from pruning_rivals import choose, parts
from pruning_rivals.calibration import Calibration
from pruning_rivals.parts import Shape


def prune(model: nn.Module, calibration: Calibration, keep: int, standardise: str = "channels") -> None:
    """Remove the lowest standardised scores of all layers and compensate them by biases.

    standardise  "channels": columns of o are standardised, then averaged over a KV group;
                 "heads": averaged, then standardised among the few groups of a layer;
                 "no": scores as they are, which the paper warns of
    """
    shape = Shape.of(model)
    channels, columns = fluctuation(model, calibration)
    kept = choose.everywhere(shape, *ranked(shape, channels, columns, standardise), shape.all - keep)
    inputs = calibration.inputs()
    for index, layer in enumerate(model.model.layers):
        gone = _others(kept.channels[index], shape.ffn)
        bias = compensation(layer.mlp.down_proj.weight, gone, inputs["down"].mean[index])
        parts.cut_ffn(layer, kept.channels[index], bias)
        rows = parts.query_rows(layer.self_attn, _others(kept.groups[index], shape.groups))
        bias = compensation(layer.self_attn.o_proj.weight, rows, inputs["o"].mean[index])
        parts.cut_attention(layer, kept.groups[index], bias)


def fluctuation(model: nn.Module, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """Scores of the columns of down and of o, [layers, columns]."""
    inputs, layers = calibration.inputs(), model.model.layers
    down = torch.stack([layer.mlp.down_proj.weight.double().square().sum(0) for layer in layers])
    out = torch.stack([layer.self_attn.o_proj.weight.double().square().sum(0) for layer in layers])
    return down * inputs["down"].variance, out * inputs["o"].variance


def ranked(shape: Shape, channels: Tensor, columns: Tensor, standardise: str) -> tuple[Tensor, Tensor]:
    """Scores of channels and of KV groups that one threshold can be laid on."""
    grouped = columns.reshape(shape.layers, shape.groups, -1)
    if standardise == "no":
        return choose.densities(shape, channels, grouped.sum(-1))
    if standardise == "channels":
        return _standardised(channels), _standardised(columns).reshape(grouped.shape).mean(-1)
    return _standardised(channels), _standardised(grouped.mean(-1))


def compensation(weight: Tensor, gone: Tensor, mean: Tensor) -> Tensor | None:
    """What the removed columns gave on average; None where nothing goes."""
    return (weight[:, gone].double() @ mean[gone]).to(weight.dtype) if len(gone) else None


def _standardised(scores: Tensor) -> Tensor:
    deviation = scores.std(-1, keepdim=True) if scores.shape[-1] > 1 else torch.ones_like(scores)
    return (scores - scores.mean(-1, keepdim=True)) / deviation.clamp(min=1e-30)


def _others(kept: Tensor, count: int) -> Tensor:
    gone = torch.ones(count, dtype=torch.bool)
    gone[kept] = False
    return gone.nonzero().flatten()
