"""Depth pruning: whole layers by ShortGPT's Block Influence (2403.03853), or greedily by the perplexity that is left.

BlockPruner (2406.10594) removes attention and FFN blocks apart, each time the one without which the calibration text
has the lowest perplexity; `greedy_layers` does the same with whole layers. Nothing is compensated. Only the first
sequences are read for each try: it takes dozens of them, and each passes the whole model.
"""

import copy
from collections.abc import Sequence

from torch import nn

from pruning_rivals.calibration import Calibration
from pruning_rivals.parts import Constant, Shape

ATTENTION, FFN = "self_attn", "mlp"
TRIAL = 16  # sequences
Block = tuple[int, str]  # layer, part


def shortgpt(model: nn.Module, calibration: Calibration, keep: int) -> None:
    """Remove as many of the least influential layers as fit."""
    shape, influence = Shape.of(model), calibration.influence()
    count = (shape.all - keep) // shape.layer
    for layer in sorted(range(shape.layers), key=influence.__getitem__)[:count]:
        drop(model, [(layer, ATTENTION), (layer, FFN)])


def greedy_layers(model: nn.Module, calibration: Calibration, keep: int) -> None:
    """Remove whole layers one by one."""
    _greedy(model, calibration, keep, [((layer, ATTENTION), (layer, FFN)) for layer in range(Shape.of(model).layers)])


def blockpruner(model: nn.Module, calibration: Calibration, keep: int) -> None:
    """Remove attention and FFN blocks one by one."""
    layers = range(Shape.of(model).layers)
    _greedy(model, calibration, keep, [((layer, part),) for layer in layers for part in (ATTENTION, FFN)])


def drop(model: nn.Module, blocks: Sequence[Block]) -> None:
    """Take blocks out: the residual stream passes them by."""
    for layer, part in blocks:
        setattr(model.model.layers[layer], part, Constant(pair=part == ATTENTION))


def _greedy(model: nn.Module, calibration: Calibration, keep: int, candidates: list[tuple[Block, ...]]) -> None:
    """The one that is missed least, again and again, until it no longer fits.

    What is smaller and would still fit is left: an attention block taken only to fill up costs more than it is worth.
    """
    shape = Shape.of(model)
    costs = {ATTENTION: shape.groups * shape.group, FFN: shape.ffn * shape.channel}
    budget, gone = shape.all - keep, frozenset()
    while budget >= min(sum(costs[part] for _, part in each) for each in candidates):
        left = [each for each in candidates if not gone & set(each)]
        best = min(left, key=lambda each: _perplexity_without(calibration, gone | set(each)))
        budget -= sum(costs[part] for _, part in best)
        if budget < 0:
            break
        gone = gone | set(best)
    drop(model, sorted(gone))


def _perplexity_without(calibration: Calibration, gone: frozenset[Block]) -> float:
    def measured() -> float:
        layers = nn.ModuleList(copy.copy(layer) for layer in calibration.model.model.layers)
        for layer in layers:
            layer._modules = dict(layer._modules)  # weights are shared, the list of parts is not
        whole, calibration.model.model.layers = calibration.model.model.layers, layers
        try:
            drop(calibration.model, sorted(gone))
            return calibration.perplexity(calibration.model, TRIAL)
        finally:
            calibration.model.model.layers = whole

    return calibration.once(("perplexity without", gone), measured)
