"""The change applied to one block, tap by tap in the order it runs: first widths, then linears, each under the inputs it
will really see.

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
from hubplugin.hessian import Moment
from hubplugin.manifest import Gptq, Prune
from hubplugin.methods import gptq, obs
from hubplugin.methods.base import Columns, Compressed, Dense, Encoding, Grid
from hubplugin.plan import VariantPlan
from hubplugin.report import LinearResult
from hubplugin.stream import Batch, Model

SAMPLE_ROWS = 8  # of every linear, kept in float32 so that the gate can compare what was stored


@dataclass
class Block:
    """One finished block: every linear's encoding, what is stored dense, and a sample of what the method made."""

    index: int
    prefix: str
    weights: dict[str, Tensor] = field(default_factory=dict)  # dense [outputs, inputs] by full module name
    encodings: dict[str, Encoding] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)  # float32 [SAMPLE_ROWS, inputs] by full module name
    results: list[LinearResult] = field(default_factory=list)
    seconds: float = 0.0


def blocks(model: Model, tokens: Tensor, plan: VariantPlan, stored: torch.dtype) -> Iterator[Block]:
    """Compress block after block over token ids [sequences, tokens]; dense weights are rounded to `stored`."""
    batches = model.start(tokens)
    for index in range(len(model)):
        begun = time.monotonic()
        block = _Change(model, batches, index, plan, stored).apply()
        model.advance(index, batches)
        block.seconds = time.monotonic() - begun
        yield block
        model.free(index)


class _Change:
    """What happens to one block."""

    def __init__(
        self, model: Model, batches: list[Batch], index: int, plan: VariantPlan, stored: torch.dtype
    ) -> None:
        self._model, self._batches, self._plan, self._stored = model, batches, plan, stored
        self._family: Family = model.family
        self._module = model.block(index)
        self._block = Block(index, self._family.block.format(i=index))

    def apply(self) -> Block:
        """Run all steps over the taps of the block."""
        prune = next((step for step in self._plan.steps if isinstance(step, Prune)), None)
        quantize = next((step for step in self._plan.steps if isinstance(step, Gptq)), None)
        width = self._family.width("ffn") if prune else None
        for tap in self._family.taps:
            if prune and width and set(width.producers) <= set(tap.linears):
                self._prune(width, prune)
            if quantize:
                self._quantize(tap, quantize)
        self._collect()
        return self._block

    def _second_moments(self, tap: Tap) -> Tensor:
        moment = Moment()
        for inputs in self._model.visit(self._block.index, self._batches, tap):
            moment.add(inputs)
        return moment.matrix(f"{self._block.prefix}.{tap.linears[0]}")

    def _prune(self, width: Width, step: Prune) -> None:
        """Drop columns of the consumer and the same rows of its producers."""
        begun = time.monotonic()
        tap = self._family.tap_of(width.consumer)
        hessian = self._second_moments(tap)
        consumer = self._linear(width.consumer)
        done = obs.compress(consumer.weight.float(), hessian, step, self._plan.widths[width.config][1])
        assert isinstance(done.encoding, Columns)
        # refitted weights are kept at the precision they will be stored in: later layers must see what is served
        self._replace(width.consumer, done.weight.to(self._stored))
        for name in width.producers:
            _keep_rows(self._linear(name), done.encoding.keep, width.parts)
        self._model.forget(self._batches, tap)
        self._note(f"{self._block.prefix}.{width.consumer}", "prune", done, begun)

    def _quantize(self, tap: Tap, step: Gptq) -> None:
        """Quantize all linears of a tap together: they share second moments, so one factor serves their rows."""
        begun = time.monotonic()
        hessian = self._second_moments(tap)
        weights = [self._linear(name).weight for name in tap.linears]
        done = gptq.compress(torch.cat(weights).float(), hessian, step)
        grid = done.encoding
        assert isinstance(grid, Grid)
        sizes = [len(weight) for weight in weights]
        parts = zip(done.weight.split(sizes), grid.codes.split(sizes), grid.scales.split(sizes), strict=True)
        for name, (dense, codes, scales) in zip(tap.linears, parts, strict=True):
            self._replace(name, dense)
            self._block.encodings[f"{self._block.prefix}.{name}"] = Grid(codes, scales, grid.bits, grid.group_size)
        self._note(_stack_name(self._block.prefix, tap), "gptq", done, begun)

    def _collect(self) -> None:
        """Note what is stored dense: linears without a grid, and biases."""
        for name in self._family.linears():
            linear, full = self._linear(name), f"{self._block.prefix}.{name}"
            if full not in self._block.encodings:
                self._block.encodings[full] = Dense()
                self._block.weights[full] = linear.weight.detach()
                self._block.samples[full] = linear.weight[:SAMPLE_ROWS].float()
            if linear.bias is not None:
                self._block.biases[full] = linear.bias.detach()

    def _linear(self, name: str) -> nn.Linear:
        return cast(nn.Linear, self._module.get_submodule(name))

    def _replace(self, name: str, weight: Tensor) -> None:
        """Give a linear the weight a method made, in the dtype the model computes in."""
        linear = self._linear(name)
        self._block.samples[f"{self._block.prefix}.{name}"] = weight[:SAMPLE_ROWS].float().clone()
        _set_weight(linear, weight.to(linear.weight.dtype))

    def _note(self, name: str, method: str, done: Compressed, begun: float) -> None:
        self._block.results.append(
            LinearResult(
                name=name,
                method=method,
                loss=done.loss,
                damp=done.damp,
                fallback=done.fallback,
                dead_inputs=done.dead_inputs,
                seconds=round(time.monotonic() - begun, 3),
            )
        )


def _stack_name(prefix: str, tap: Tap) -> str:
    if len(tap.linears) == 1:
        return f"{prefix}.{tap.linears[0]}"
    parent = tap.linears[0].rsplit(".", 1)[0]
    return f"{prefix}.{parent}.{{{','.join(name.rsplit('.', 1)[1] for name in tap.linears)}}}"


def _set_weight(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    linear.out_features, linear.in_features = weight.shape


def _keep_rows(linear: nn.Linear, kept: Tensor, parts: int) -> None:
    """Keep the same rows in each of the equal parts stacked in a producer."""
    size = linear.weight.shape[0] // parts
    rows = torch.cat([kept + part * size for part in range(parts)])
    _set_weight(linear, linear.weight[rows])
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[rows], requires_grad=False)
