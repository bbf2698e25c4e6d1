"""Depth pruning: whole layers by ShortGPT's Block Influence (2403.03853), or greedily by the perplexity that is left.

BlockPruner (2406.10594) removes attention and FFN blocks apart, each time the one without which the calibration text
has the lowest perplexity; `greedy_layers` does the same with whole layers. Nothing is compensated. Only the first
sequences are read for each try: it takes dozens of them, and each passes the whole model.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

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
        tries = _Tries(calibration, gone)
        best = min((each for each in candidates if not gone & set(each)), key=tries.perplexity)
        budget -= sum(costs[part] for _, part in best)
        if budget < 0:
            break
        gone = gone | set(best)
    drop(model, sorted(gone))


class _Tries:
    """What the calibration text's perplexity becomes without one more of the blocks.

    The layers below that block compute what they computed without it, so their outputs are kept: `_inputs`. The
    products of a try are bfloat16, the residual stream float32: a thousand tries of a real model pass it.
    """

    def __init__(self, calibration: Calibration, gone: frozenset[Block]) -> None:
        self.calibration, self.gone = calibration, gone

    def perplexity(self, blocks: tuple[Block, ...]) -> float:
        """Without these blocks as well."""
        gone = self.gone | set(blocks)
        return self.calibration.once(("perplexity without", gone), lambda: self._measured(blocks[0][0], gone))

    def _measured(self, first: int, gone: frozenset[Block]) -> float:
        inputs = self._inputs[first]
        with _without(self.calibration.model, gone, first) as model:
            return self.calibration.perplexity(model, TRIAL, inputs)

    @cached_property
    def _inputs(self) -> list[Tensor]:
        """Of every layer without what is gone already: [sequences, tokens, hidden]."""
        with _without(self.calibration.model, self.gone) as model:
            return self.calibration.hidden_states(model, TRIAL)


@contextmanager
def _without(model: nn.Module, gone: frozenset[Block], first: int = 0) -> Iterator[nn.Module]:
    """The model, whose weights these are, without some blocks and the layers below `first`; products in bfloat16."""
    whole = model.model.layers
    layers = nn.ModuleList(copy.copy(layer) for layer in whole)
    for layer in layers:
        layer._modules = dict(layer._modules)  # weights are shared, the list of parts is not
    model.model.layers = layers
    try:
        drop(model, sorted(gone))
        model.model.layers = layers[first:]
        with torch.autocast("cpu", torch.bfloat16):
            yield model
    finally:
        model.model.layers = whole
