"""The change applied to one block, tap by tap as it runs: widths, then linears, each under inputs it will really see.

A block is a transformers module that `stream` filled; this file replaces its weights and says how they are stored.
Knows the methods, no file format and no Hub.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from hubplugin import masks, memory
from hubplugin.activations import Batch, copied
from hubplugin.family import Family, Tap, Width
from hubplugin.hessian import Drift, Moment, products_of, widened
from hubplugin.loadable import LinearPlan
from hubplugin.manifest import Gptq, Prune, SparseGpt, Wanda
from hubplugin.methods import gptq, obs, sparsegpt, wanda
from hubplugin.methods.base import Columns, Compressed, Dense, Encoding, Grid
from hubplugin.plan import VariantPlan
from hubplugin.report import LinearResult
from hubplugin.stream import Model

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


COLD = 4  # tokens for each input of a linear; an expert that sees fewer is cold
HELD_OUT = 8  # one sequence in so many decides how far targets are corrected


class Finished(Protocol):
    """Blocks that an interrupted run left: how many from the first on, and their dense tensors by name in the block."""

    finished: int

    def dense(self, index: int) -> dict[str, Tensor]: ...


def blocks(
    model: Model,
    tokens: Tensor,
    plan: VariantPlan,
    stored: torch.dtype,
    finished: Finished | None = None,
    spill: Path | None = None,
) -> Iterator[Block]:
    """Compress block after block over token ids [sequences, tokens]; dense weights are rounded to `stored`.

    Blocks that `finished` has are passed through as they are and not handed out again. With `spill`, an empty folder,
    activations live there instead of in memory.
    """
    lanes = [model.start(tokens, lane_folder(spill, "ours"))]
    if any(isinstance(step, Gptq) and step.qep for step in plan.steps):
        lanes.append(copied(lanes[0], lane_folder(spill, "base")))  # what the base makes of the same tokens
    done = finished.finished if finished else 0
    for index in range(len(model)):
        begun = time.monotonic()
        change = _Change(model, lanes, index, plan, stored)
        if finished and index < done:
            change.take(finished.dense(index))
            change.advance()
            block = None
        else:
            block = change.apply()
            change.advance()
            block.seconds = time.monotonic() - begun
        del change  # and with it what the block was before
        model.free(index)
        memory.trim()
        if block:
            yield block
        del block
    if plan.head and done <= len(model):
        yield _head(model, lanes[0], plan, plan.head)


def _head(model: Model, batches: list[Batch], plan: VariantPlan, head: LinearPlan) -> Block:
    """The output head as a block of its own: it reads what the final norm makes of the last hidden states."""
    begun = time.monotonic()
    settings, hessian = plan.settings(head.name), _moment(model.finish(batches)).matrix(head.name)
    assert settings is not None
    made = gptq.compress(model.source.get(f"{head.name}.weight").float(), hessian, settings)
    block = Block(len(model), head.name, encodings={head.name: made.encoding})
    block.samples[head.name] = _sample(made.weight)
    block.results.append(_result(head.name, "gptq", made, begun))
    block.seconds = time.monotonic() - begun
    return block


def lane_folder(spill: Path | None, name: str) -> Path | None:
    """A folder of its own for the activations of one lane; None where they stay in memory."""
    if spill is None:
        return None
    (spill / name).mkdir(parents=True)
    return spill / name


def second_moments(model: Model, index: int, batches: list[Batch], tap: Tap) -> Tensor:
    """Second moments [inputs, inputs] of a tap of a block, as the block stands now."""
    return _moment(model.visit(index, batches, tap)).matrix(f"{model.family.block.format(i=index)}.{tap.linears[0]}")


class _Change:
    """What happens to one block."""

    def __init__(
        self, model: Model, lanes: list[list[Batch]], index: int, plan: VariantPlan, stored: torch.dtype
    ) -> None:
        self._model, self._plan, self._stored = model, plan, stored
        self._batches, self._base = lanes[0], lanes[1] if len(lanes) > 1 else None
        self._family: Family = model.family
        self._module = model.block(index)
        self._twin = model.twin(index) if self._base else self._module
        self._block = Block(index, self._family.block.format(i=index))
        self._everyone: tuple[Tensor, int] | None = None  # second moments of all tokens that reach the experts

    def advance(self) -> None:
        """Hand the hidden states on to the next block: ours through what is stored now, the base's through its own."""
        self._model.advance(self._block.index, self._batches, self._module)
        if self._base:
            self._model.advance(self._block.index, self._base, self._twin)

    def take(self, dense: dict[str, Tensor]) -> None:
        """Give the block the weights it was finished with."""
        for name in self._family.linears():
            linear = self._linear(name)
            _set_weight(linear, dense[f"{name}.weight"].to(linear.weight))
            if linear.bias is not None:
                linear.bias = nn.Parameter(dense[f"{name}.bias"].to(linear.bias), requires_grad=False)

    def apply(self) -> Block:
        """Run all steps over the taps of the block."""
        prune = next((step for step in self._plan.steps if isinstance(step, Prune)), None)
        width = self._family.width("ffn") if prune else None
        for tap in self._family.taps:
            if prune and width and set(width.producers) <= set(tap.linears):
                self._prune(width, prune)
            steps = {name: self._plan.settings(f"{self._block.prefix}.{name}") for name in tap.linears}
            names = tuple(name for name, step in steps.items() if step)
            if names and (step := steps[names[0]]):
                self._quantize(tap, names, step)
            if masked := [name for name in tap.linears if self._plan.mask(f"{self._block.prefix}.{name}")]:
                self._mask(tap, masked)
        self._collect()
        return self._block

    def _second_moments(self, tap: Tap) -> Tensor:
        return second_moments(self._model, self._block.index, self._batches, tap)

    def _of_expert(self, tap: Tap) -> tuple[Tensor, str | None]:
        """Second moments for an expert's linears, and what was done where the router sent it too few tokens.

        From few tokens they are mostly chance, and error feedback that follows chance is worse than rounding. A cold
        expert also sees tokens of the block at large, which count as many as it has inputs (docs/maths.md, Experts).
        """
        own, where = _moment(self._model.visit(self._block.index, self._batches, tap)), self._where(tap)
        inputs = self._linear(tap.linears[0]).in_features
        if own.tokens >= COLD * inputs:
            return own.matrix(where), None
        large, tokens = self._at_large(tap)
        blended = large * (inputs / tokens)
        if own.tokens:
            blended += own.matrix(where)
        return blended, f"saw {own.tokens} tokens: {tokens} of the block at large stand in, as {inputs}"

    def _at_large(self, tap: Tap) -> tuple[Tensor, int]:
        """Second moments of the tokens of the block, and how many: of all where experts share them, else of some."""
        names, index = self._family.experts, self._block.index
        assert names is not None
        if tap.linears[0].endswith(f".{names.down}"):
            most = COLD * self._linear(tap.linears[0]).in_features
            some = _moment(self._model.at_large(index, self._batches, tap, most))
            return some.matrix(self._where(tap)), some.tokens
        if self._everyone is None:
            every = _moment(self._model.at_large(index, self._batches, tap))
            self._everyone = every.matrix(self._where(tap)), every.tokens
        return self._everyone

    def _drifts(self, tap: Tap, weight: Tensor, source: Tensor) -> tuple[Moment, Drift, Drift]:
        """Second moments of a tap, and what its linears owe: by the tokens that fit, and by those that check."""
        assert self._base is not None
        index, ends = self._block.index, tap.linears[0] in [part.end for part in self._family.parts]
        moment, fit, check, first = Moment(), Drift(weight, source, ends), Drift(weight, source, ends), 0
        ours = self._model.visit(index, self._batches, tap)
        theirs = self._model.visit(index, self._base, tap, self._twin)
        for batch, base, inputs, base_inputs in zip(self._batches, self._base, ours, theirs, strict=True):
            lost = None
            if self._family.residual and ends:
                lost = self._model.residual(base, tap).float() - self._model.residual(batch, tap).float()
            held = (torch.arange(first, first := first + len(inputs)) + 1) % HELD_OUT == 0
            with products_of(inputs.dtype):
                wide = widened(inputs)
                moment.add(wide)
                for drift, rows in ((fit, ~held), (check, held)):
                    if bool(rows.any()):
                        part = slice(None) if bool(rows.all()) else rows.to(inputs.device)
                        drift.add(wide[part], base_inputs[part], None if lost is None else lost[part])
        return moment, fit, check

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

    def _quantize(self, tap: Tap, names: tuple[str, ...], step: Gptq) -> None:
        """Quantize linears of a tap together: they share second moments, so one factor serves their rows."""
        begun = time.monotonic()
        weights = [self._linear(name).weight for name in names]
        weight, prepared, share, cold = torch.cat(weights).float(), None, None, None
        if tap.expert is not None:  # the base routes other tokens there: nothing to correct towards
            hessian, cold = self._of_expert(tap)
        elif self._base is None or (self._block.index == 0 and tap == self._family.taps[0]):  # nothing has changed yet
            hessian = self._second_moments(tap)
        else:
            moment, fit, check = self._drifts(tap, weight, self._source(names, weight))
            hessian = moment.matrix(self._where(tap))
            prepared = gptq.prepare(hessian, step)
            weight, share = gptq.corrected(weight, prepared, fit, check)
            del fit, check
        done = gptq.compress(weight, hessian, step, prepared)
        if cold:
            done = replace(done, fallback="; ".join(filter(None, (cold, done.fallback))))
        grid = done.encoding
        assert isinstance(grid, Grid)
        rows = 0
        for name, old in zip(names, weights, strict=True):
            part = slice(rows, rows := rows + len(old))
            self._replace(name, done.weight[part])
            self._block.encodings[f"{self._block.prefix}.{name}"] = grid.rows(part)
        self._note(_stack_name(self._block.prefix, names), "gptq", done, begun, share)

    def _mask(self, tap: Tap, names: list[str]) -> None:
        """Set weights of a tap's linears to zero, one linear after another: they share second moments and a factor."""
        hessian, cold = self._of_expert(tap) if tap.expert is not None else (self._second_moments(tap), None)
        step, factor = masks.step_of(self._plan.steps), None
        for name in names:
            begun, weight = time.monotonic(), self._linear(name).weight.float()
            if isinstance(step, SparseGpt):
                factor = factor or sparsegpt.prepare(hessian, step)
                done = sparsegpt.compress(weight, hessian, step, factor)
            else:
                assert isinstance(step, Wanda)
                done = wanda.compress(weight, hessian, step)
            done = replace(done, fallback="; ".join(filter(None, (cold, done.fallback))) or None)
            self._replace(name, done.weight.to(self._stored))  # later layers must see what is served
            self._note(f"{self._block.prefix}.{name}", step.method, done, begun)

    def _source(self, names: tuple[str, ...], weight: Tensor) -> Tensor:
        """The stacked weights of the base, or `weight` itself: unless inputs were pruned, nothing but rows is gone."""
        before = [cast(nn.Linear, self._twin.get_submodule(name)).weight for name in names]
        return weight if before[0].shape[1] == weight.shape[1] else torch.cat(before).float()

    def _where(self, tap: Tap) -> str:
        return f"{self._block.prefix}.{tap.linears[0]}"

    def _collect(self) -> None:
        """Note what is stored dense: linears without a grid, and biases."""
        for name in self._family.linears():
            linear, full = self._linear(name), f"{self._block.prefix}.{name}"
            if full not in self._block.encodings:
                self._block.encodings[full] = Dense()
                self._block.weights[full] = linear.weight.detach()
                self._block.samples[full] = _sample(linear.weight)
            if linear.bias is not None:
                self._block.biases[full] = linear.bias.detach()

    def _linear(self, name: str) -> nn.Linear:
        return cast(nn.Linear, self._module.get_submodule(name))

    def _replace(self, name: str, weight: Tensor) -> None:
        """Give a linear the weight a method made, in the dtype the model computes in."""
        linear = self._linear(name)
        self._block.samples[f"{self._block.prefix}.{name}"] = _sample(weight)
        _set_weight(linear, weight.to(linear.weight.dtype))

    def _note(self, name: str, method: str, done: Compressed, begun: float, share: float | None = None) -> None:
        self._block.results.append(_result(name, method, done, begun, share))


def _result(name: str, method: str, done: Compressed, begun: float, share: float | None = None) -> LinearResult:
    return LinearResult(
        name=name,
        method=method,
        loss=done.loss,
        damp=done.damp,
        fallback=done.fallback,
        dead_inputs=done.dead_inputs,
        correction=share,
        seconds=round(time.monotonic() - begun, 3),
    )


def _sample(weight: Tensor) -> Tensor:
    return weight[:SAMPLE_ROWS].to("cpu", torch.float32, copy=True)


def _moment(batches: Iterable[Tensor]) -> Moment:
    moment = Moment()
    for inputs in batches:
        if len(inputs):  # a router may send no token of a batch
            moment.add(inputs)
    return moment


def _stack_name(prefix: str, names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return f"{prefix}.{names[0]}"
    parent = names[0].rsplit(".", 1)[0]
    return f"{prefix}.{parent}.{{{','.join(name.rsplit('.', 1)[1] for name in names)}}}"


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
