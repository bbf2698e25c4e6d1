"""The change applied to one block: widths first, then linears, each under the inputs it will really see.

A block is a transformers module that `stream` filled; this file replaces its weights and says how they are stored.
Knows the methods, no file format and no Hub.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from hubplugin.family import Family, Tap, Width
from hubplugin.manifest import Gptq, Prune, Step
from hubplugin.methods import gptq, obs
from hubplugin.methods.base import Columns, Compressed, Dense, Encoding, Grid
from hubplugin.plan import VariantPlan
from hubplugin.report import LinearResult
from hubplugin.stream import Batch, Model


@dataclass
class Block:
    """One finished block: every linear's dense weight as the next block saw it, its encoding and bias."""

    index: int
    prefix: str
    weights: dict[str, Tensor] = field(default_factory=dict)  # by full module name; dense [outputs, inputs]
    encodings: dict[str, Encoding] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    results: list[LinearResult] = field(default_factory=list)
    seconds: float = 0.0


def blocks(model: Model, family: Family, tokens: Tensor, plan: VariantPlan, stored: torch.dtype) -> Iterator[Block]:
    """Compress block after block over token ids [sequences, tokens]; dense weights are rounded to `stored`."""
    batches = model.start(tokens)
    for index in range(len(model)):
        begun = time.monotonic()
        module = model.block(index)
        block = Block(index, family.block.format(i=index))
        for step in plan.steps:
            _apply(step, model, family, batches, module, block, plan, stored)
        for name in family.linears():
            linear = _linear(module, name)
            full = f"{block.prefix}.{name}"
            block.weights[full] = linear.weight.detach()
            block.encodings.setdefault(full, Dense())
            if linear.bias is not None:
                block.biases[full] = linear.bias.detach()
        model.advance(index, batches)
        block.seconds = time.monotonic() - begun
        yield block
        model.free(index)


def _apply(
    step: Step,
    model: Model,
    family: Family,
    batches: list[Batch],
    module: nn.Module,
    block: Block,
    plan: VariantPlan,
    stored: torch.dtype,
) -> None:
    if isinstance(step, Prune):
        width = family.width("ffn")
        _prune(model, batches, module, block, width, step, plan.widths[width.config][1], stored)
    else:
        for tap in family.taps:
            _quantize(model, batches, module, block, tap, step)


def _prune(
    model: Model,
    batches: list[Batch],
    module: nn.Module,
    block: Block,
    width: Width,
    step: Prune,
    keep: int,
    stored: torch.dtype,
) -> None:
    """Drop columns of the consumer and the same rows of its producers."""
    begun = time.monotonic()
    where = f"{block.prefix}.{width.consumer}"
    hessian = model.collect(block.index, batches, width.consumer).matrix(where)
    consumer = _linear(module, width.consumer)
    done = obs.compress(consumer.weight, hessian, step, keep)
    assert isinstance(done.encoding, Columns)
    kept = done.encoding.keep
    # refitted weights are kept at the precision they will be stored in: later layers must see what is served
    _replace(consumer, done.weight.to(stored).to(consumer.weight.dtype))
    for name in width.producers:
        _keep_rows(_linear(module, name), kept, width.parts)
    block.results.append(_result(where, "prune", done, begun))


def _quantize(model: Model, batches: list[Batch], module: nn.Module, block: Block, tap: Tap, step: Gptq) -> None:
    """Quantize all linears of a tap together: they share second moments, so one factor serves their rows."""
    begun = time.monotonic()
    where = f"{block.prefix}.{tap.linears[0]}"
    hessian = model.collect(block.index, batches, tap.linears[0]).matrix(where)
    linears = [_linear(module, name) for name in tap.linears]
    done = gptq.compress(torch.cat([linear.weight for linear in linears]), hessian, step)
    grid = done.encoding
    assert isinstance(grid, Grid)
    first = 0
    for name, linear in zip(tap.linears, linears, strict=True):
        rows = slice(first, first + linear.weight.shape[0])
        first = rows.stop
        _replace(linear, done.weight[rows].to(linear.weight.dtype))
        part = Grid(grid.codes[rows], grid.scales[rows], grid.bits, grid.group_size)
        block.encodings[f"{block.prefix}.{name}"] = part
    block.results.append(_result(_stack_name(block.prefix, tap), "gptq", done, begun))


def _stack_name(prefix: str, tap: Tap) -> str:
    if len(tap.linears) == 1:
        return f"{prefix}.{tap.linears[0]}"
    parent = tap.linears[0].rsplit(".", 1)[0]
    return f"{prefix}.{parent}.{{{','.join(name.rsplit('.', 1)[1] for name in tap.linears)}}}"


def _result(name: str, method: str, done: Compressed, begun: float) -> LinearResult:
    return LinearResult(
        name=name,
        method=method,
        loss=done.loss,
        damp=done.damp,
        fallback=done.fallback,
        dead_inputs=done.dead_inputs,
        seconds=round(time.monotonic() - begun, 3),
    )


def _linear(module: nn.Module, name: str) -> nn.Linear:
    return cast(nn.Linear, module.get_submodule(name))


def _replace(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    linear.out_features, linear.in_features = weight.shape


def _keep_rows(linear: nn.Linear, kept: Tensor, parts: int) -> None:
    """Keep the same rows in each of the equal parts stacked in a producer."""
    size = linear.weight.shape[0] // parts
    rows = torch.cat([kept + part * size for part in range(parts)])
    _replace(linear, linear.weight[rows])
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[rows], requires_grad=False)
