"""Latency: what sublayers cost in time for one generated token, measured on the machine that does the compressing.

A decoder that serves one request reads every weight once per token: each sublayer's linears are timed on one row,
weights out of cache. Knows shapes. Knows no weights' values and no engine; vLLM's own times are in docs/pruning.md.
"""

import statistics
import time
from dataclasses import replace

import torch

from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.architecture import BlockShape
from hubplugin.plan.choices.pruning_space import Cost, Space

ROUNDS = 15
ROTATED = 256 * 2**20  # bytes of copies of the weights, timed in turn, so that none is still in a cache
MOST_COPIES = 64  # small matrices stay in a cache anyway
DTYPE = torch.bfloat16
NANO = 1e9


def measure(space: Space) -> Cost:
    """Nanoseconds per token of every choice of heads and of every width, and of the output head."""
    attention = {(0, 0): 0.0, **{heads: _seconds(space, BlockShape(*heads, 0)) * NANO for heads in space.heads}}
    ffn = {0: 0.0, **{width: _seconds(space, BlockShape(0, 0, width)) * NANO for width in space.widths}}
    head = _median_seconds([(space.base.vocab, space.base.hidden)]) * NANO
    return Cost(attention, ffn, rest=head)


def of_base(cost: Cost, space: Space) -> float:
    """Nanoseconds per token of the base."""
    block = cost.attention[space.base.heads, space.base.kv_heads] + cost.ffn[space.base.ffn]
    return cost.rest + space.base.layers * block


def _seconds(space: Space, block: BlockShape) -> float:
    """Of one row through the linears of a sublayer, as vLLM stacks them."""
    dims = replace(space.base, heads=block.heads, kv_heads=block.kv_heads, ffn=block.ffn, blocks=())
    shapes = architecture.linear_shapes(space.family, dims)
    stacked: dict[str, list[tuple[int, int]]] = {}
    for name, shape in shapes.items():
        stacked.setdefault(space.family.input_group_of(name).name, []).append(shape)
    return _median_seconds([(sum(rows for rows, _ in group), group[0][1]) for group in stacked.values()])


@torch.inference_mode()
def _median_seconds(shapes: list[tuple[int, int]]) -> float:
    """Median seconds of one row through matrices [outputs, inputs], one after the other."""
    size = sum(outputs * inputs for outputs, inputs in shapes) * DTYPE.itemsize
    count = min(max(2, ROTATED // size), MOST_COPIES)
    copies = [[torch.zeros(shape, dtype=DTYPE) for shape in shapes] for _ in range(count)]
    rows = [torch.ones(1, inputs, dtype=DTYPE) for _, inputs in shapes]
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for weights in copies:
            for row, weight in zip(rows, weights, strict=True):
                torch.nn.functional.linear(row, weight)
        seconds.append((time.perf_counter() - begun) / len(copies))
    return statistics.median(seconds)
