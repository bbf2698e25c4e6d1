"""The change applied to one block, tap by tap as it runs: widths, then linears, each under inputs it will really see.

A block is a transformers module that `stream` filled; this file replaces its weights and says how they are stored.
Knows the methods, no file format and no Hub.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from hubplugin import memory
from hubplugin.checkpoint.encodings import Columns, Dense, Encoding, Grid
from hubplugin.compress import linear_results
from hubplugin.manifest.gptq import Quantization
from hubplugin.manifest.methods import mask_of
from hubplugin.methods import linear_algebra, obs, qep
from hubplugin.methods.base import Compressed, solver_of
from hubplugin.methods.qep import TargetCorrection
from hubplugin.model import architecture, heterogeneous
from hubplugin.model.activations import Batch, copied
from hubplugin.model.block_runner import Model
from hubplugin.model.families import Family, InputGroup
from hubplugin.model.layer_inputs import LayerInputs, second_moments_of
from hubplugin.plan import workload
from hubplugin.plan.schemes import LinearPlan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import LinearResult

SAMPLE_ROWS = 8  # of every linear, kept in float32 so that the gate can compare what was stored


@dataclass
class Block:
    """One finished block: every linear's encoding, what is stored dense, and a sample of what the method made."""

    index: int
    prefix: str
    source: str  # the prefix of the block of the base that it comes from
    weights: dict[str, Tensor] = field(default_factory=dict)  # dense [outputs, inputs] by full module name
    encodings: dict[str, Encoding] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)  # float32 [SAMPLE_ROWS, inputs] by full module name
    results: list[LinearResult] = field(default_factory=list)
    seconds: float = 0.0


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
    lanes = [model.embed(tokens, activations_folder(spill, "ours"))]
    if corrected := workload.corrected_tokens(plan.steps, tokens.numel()):
        lanes.append(
            copied(spaced(lanes[0], corrected), activations_folder(spill, "base"))
        )  # what the base makes of these
    done = finished.finished if finished else 0
    for number, index in enumerate(plan.sources):
        begun = time.monotonic()
        if number == 0:
            skip(model, lanes, range(index))
        change = _Change(model, lanes, index, plan, stored, spill)
        if finished and number < done:
            change.take(finished.dense(number))
            change.forward_block()
            block = None
        else:
            block = change.apply()
            change.forward_block()
            block.seconds = time.monotonic() - begun
        del change  # and with it what the block was before
        model.free(index)
        memory.trim()
        if block:
            yield block
        del block
    if plan.head and done <= len(plan.sources):
        yield _head(model, lanes[0], plan, plan.head)


def spaced(batches: list[Batch], most: int) -> list[Batch]:
    """Every n-th batch, of `most` tokens in all, or of one batch where that has more."""
    count = max(1, most // math.prod(batches[0].shape("hidden")[:2]))
    return batches[:: -(-len(batches) // count)]


def skip(model: Model, lanes: list[list[Batch]], left_out: Iterable[int]) -> None:
    """Take the base's lane through blocks that the variant does not have."""
    for index in left_out if len(lanes) > 1 else ():
        model.block(index)
        model.forward_block(index, lanes[1])
        model.free(index)


def _head(model: Model, batches: list[Batch], plan: VariantPlan, head: LinearPlan) -> Block:
    """The output head as a block of its own: it reads what the final norm makes of the last hidden states."""
    begun = time.monotonic()
    settings, hessian = plan.settings(head.name), second_moments_of(model.final_norm(batches)).matrix(head.name)
    assert settings is not None
    made = solver_of(settings).compress(model.source.get(f"{head.name}.weight").float(), hessian, settings, None)
    block = Block(len(plan.sources), head.name, head.name, encodings={head.name: made.encoding})
    block.samples[head.name] = _sample(made.weight)
    block.results.append(linear_results.of(head.name, settings.method, made, begun))
    block.seconds = time.monotonic() - begun
    return block


def activations_folder(spill: Path | None, name: str) -> Path | None:
    """A folder of its own for the activations of one lane; None where they stay in memory."""
    if spill is None:
        return None
    (spill / name).mkdir(parents=True)
    return spill / name


class _Change:
    """What happens to one block."""

    def __init__(
        self,
        model: Model,
        lanes: list[list[Batch]],
        index: int,
        plan: VariantPlan,
        stored: torch.dtype,
        spill: Path | None,
    ) -> None:
        self._model, self._plan, self._stored, self._index = model, plan, stored, index
        self._batches, self._base = lanes[0], lanes[1] if len(lanes) > 1 else None
        self._family: Family = model.family
        self._prune = plan.prune
        number = plan.sources.index(index)
        self._sizes = plan.dims.at(number)
        self._there = architecture.linear_shapes(self._family, self._sizes)  # of the linears that the block still has
        absent = architecture.absent(self._family, self._sizes)
        ends = [part.end for part in self._family.sublayers if part not in absent]
        self._module = model.block(index)
        self._twin = model.copy_block(index) if self._base else self._module
        for part in absent:
            heterogeneous.remove(self._module, part)
        self._block = Block(number, self._family.block.format(i=number), self._family.block.format(i=index))
        self._lanes = lanes
        self._inputs = LayerInputs(model, index, lanes[0], self._base, self._twin, ends[-1])
        after = plan.sources[number + 1] if number + 1 < len(plan.sources) else len(model)
        if self._base and (after > index + 1 or ends[-1] != self._family.sublayers[-1].end):
            self._inputs.ahead = self._look_ahead(self._base, range(index + 1, after), spill)

    def _look_ahead(self, base: list[Batch], left_out: Iterable[int], spill: Path | None) -> list[Batch]:
        """The base's lane behind this block and those that are left out after it."""
        lane = copied(base, activations_folder(spill, f"base-{self._index}"))
        self._model.forward_block(self._index, lane, self._twin)
        skip(self._model, [self._batches, lane], left_out)
        return lane

    def forward_block(self) -> None:
        """Hand the hidden states on to the next block: ours through what is stored now, the base's through its own."""
        self._model.forward_block(self._index, self._batches, self._module)
        if self._inputs.ahead:
            for batch in self._lanes[1]:
                batch.clear()
            self._lanes[1] = self._inputs.ahead
        elif self._base:
            self._model.forward_block(self._index, self._base, self._twin)

    def take(self, dense: dict[str, Tensor]) -> None:
        """Give the block the weights it was finished with."""
        for name in self._there:
            linear = self._linear(name)
            _set_weight(linear, dense[f"{name}.weight"].to(linear.weight))
            if f"{name}.bias" in dense:
                linear.bias = nn.Parameter(dense[f"{name}.bias"].to(linear.weight), requires_grad=False)
        heterogeneous.share_heads(self._module, self._family, self._sizes)

    def apply(self) -> Block:
        """Run all steps over the taps of the block that it still has."""
        self._add_biases()
        for input_group in self._family.input_groups:
            if input_group.linears[0] not in self._there:
                continue
            steps = {name: self._plan.settings(f"{self._block.prefix}.{name}") for name in input_group.linears}
            quantized = tuple(name for name, step in steps.items() if step)
            cut = self._cut(input_group)
            if quantized or cut or (self._prune and self._prune.refit):
                self._treat(
                    input_group, quantized or input_group.linears, steps[quantized[0]] if quantized else None, cut
                )
            if masked := [name for name in input_group.linears if self._plan.mask(f"{self._block.prefix}.{name}")]:
                self._mask(input_group, masked)
        self._collect()
        return self._block

    def _add_biases(self) -> None:
        """Biases that the variant's class has and the base's has not: zeros, until something is fitted to them."""
        for name in architecture.biased_linears(self._plan.config, self._plan.family):
            if name in self._there and (linear := self._linear(name)).bias is None:
                zeros = torch.zeros(linear.out_features, dtype=linear.weight.dtype, device=linear.weight.device)
                linear.bias = nn.Parameter(zeros, requires_grad=False)

    def _cut(self, input_group: InputGroup) -> tuple[obs.Cut, ...]:
        """What the columns of a tap's linear lose, if it is the consumer of a width that shrinks."""
        before, after = self._model.dims, self._sizes
        found = []
        if self._prune and input_group.linears[0] == self._family.width("ffn").consumer and after.ffn < before.ffn:
            found.append(obs.Cut(1, after.ffn))
        if self._prune and input_group.linears[0] == self._family.width("heads").consumer:
            each = before.heads // before.kv_heads
            if after.kv_heads < before.kv_heads:
                found.append(obs.Cut(each * before.head_dim, after.kv_heads))
            if after.heads // after.kv_heads < each:
                found.append(obs.Cut(before.head_dim, after.heads, segments=after.kv_heads))
        return tuple(found)

    def _treat(
        self, input_group: InputGroup, names: tuple[str, ...], step: Quantization | None, cut: tuple[obs.Cut, ...]
    ) -> None:
        """Prune, correct and quantize linears of a tap together, as far as each is asked for.

        They share second moments, so one look at their inputs and one factor serve all rows and all of it.
        """
        begun, share, cold, kept = time.monotonic(), None, None, None
        weight = plain = torch.cat([self._linear(name).weight for name in names]).float()
        corrections: list[TargetCorrection] = []
        if input_group.expert is not None:  # the base routes other tokens there: nothing to correct towards
            hessian, cold = self._inputs.of_expert(input_group)
        elif self._aims(input_group, step):
            averages = self._prune is not None and self._prune.bias
            hessian, matched, *corrections = self._inputs.corrections(input_group, weight, averages)
        else:
            hessian = self._inputs.second_moments(input_group)
        if cut:
            assert self._prune
            done = obs.compress(weight, hessian, self._prune, cut)
            assert isinstance(done.encoding, Columns)
            kept = done.encoding.keep
            plain, weight = plain[:, kept], done.weight
            hessian = matched = hessian[kept][:, kept]  # where widths shrink, all tokens pass through the base
            for correction in corrections:
                correction.keep(kept)
            self._drop_rows(input_group, kept)
            self._note(f"{self._block.prefix}.{names[0]}", "prune", done, begun)
        if step is None:
            self._refit(names, plain, weight, hessian, corrections, begun)
        else:
            prepared = solver_of(step).prepare(matched, step) if corrections else None
            if prepared:
                weight, share = qep.corrected(weight, prepared, *corrections)
                prepared, matched = prepared if matched is hessian else None, hessian
            self._quantize(names, weight, hessian, step, prepared, share, cold, begun)
        if corrections and self._prune and self._prune.bias:
            self._fit_biases(names, corrections, kept)

    def _fit_biases(self, names: tuple[str, ...], corrections: Sequence[TargetCorrection], kept: Tensor | None) -> None:
        """Let the biases of linears add what they owe on average, as they are stored now."""
        made = torch.cat([self._linear(name).weight for name in names])
        owed = [correction.on_average(made, kept) for correction in corrections if correction.tokens]
        added = sum(owed[1:], owed[0]) / sum(correction.tokens for correction in corrections)
        for name, part in zip(names, added.split([self._linear(name).out_features for name in names]), strict=True):
            linear = self._linear(name)
            assert linear.bias is not None
            fitted = (linear.bias.float() + part).to(self._stored)
            linear.bias = nn.Parameter(fitted.to(linear.weight.dtype), requires_grad=False)

    def _aims(self, input_group: InputGroup, step: Quantization | None) -> bool:
        """Whether linears are fitted to the base's outputs, and something before them has changed."""
        wanted = step.qep if step else self._prune is not None and self._prune.refit
        return wanted and not (self._index == 0 and input_group == self._family.input_groups[0])

    def _refit(
        self,
        names: tuple[str, ...],
        plain: Tensor,
        weight: Tensor,
        hessian: Tensor,
        corrections: Sequence[TargetCorrection],
        begun: float,
    ) -> None:
        """Store linears dense, fitted to the base's outputs where drifts are known."""
        if corrections and self._prune:
            prepared = linear_algebra.prepare(hessian, self._prune.damp)
            weight, share = qep.corrected(weight, prepared, *corrections)
            self._block.results.append(
                linear_results.fitted(linear_results.stack_name(self._block.prefix, names), prepared, share, begun)
            )
        # at the precision it will be stored in: later layers must see what is served
        weight = qep.stored(weight, plain, hessian, self._stored)
        for name, part in zip(names, weight.split([self._linear(name).out_features for name in names]), strict=True):
            self._replace(name, part.to(self._stored))

    def _quantize(
        self,
        names: tuple[str, ...],
        weight: Tensor,
        hessian: Tensor,
        step: Quantization,
        prepared: linear_algebra.Prepared | None,
        share: float | None,
        cold: str | None,
        begun: float,
    ) -> None:
        """Quantize linears of a tap together, and note what became of them."""
        done = solver_of(step).compress(weight, hessian, step, prepared)
        if cold:
            done = replace(done, fallback="; ".join(filter(None, (cold, done.fallback))))
        codes = done.encoding
        assert isinstance(codes, Grid)
        rows = 0
        for name in names:
            part = slice(rows, rows := rows + self._linear(name).out_features)
            self._replace(name, done.weight[part])
            self._block.encodings[f"{self._block.prefix}.{name}"] = codes.rows(part)
        self._note(linear_results.stack_name(self._block.prefix, names), step.method, done, begun, share)

    def _drop_rows(self, input_group: InputGroup, kept: Tensor) -> None:
        """Of the producers of a consumer whose columns `kept` stay, drop the rows that nobody reads any more."""
        width = next(width for width in self._family.widths if width.consumer in input_group.linears)
        for name, rows in heterogeneous.kept_rows(width, self._model.dims, kept).items():
            self._keep_rows(name, rows)
        self._model.forget(self._batches, input_group)
        heterogeneous.share_heads(self._module, self._family, self._sizes)

    def _keep_rows(self, name: str, rows: Tensor) -> None:
        """Keep some outputs of a linear, in whatever way it is stored by now."""
        linear, full = self._linear(name), f"{self._block.prefix}.{name}"
        _set_weight(linear, linear.weight[rows])
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias[rows], requires_grad=False)
        encoding = self._block.encodings.get(full)
        if isinstance(encoding, Grid):
            encoding = self._block.encodings[full] = encoding.rows(rows)
            self._block.samples[full] = _sample(encoding.rows(slice(SAMPLE_ROWS)).dense())

    def _mask(self, input_group: InputGroup, names: list[str]) -> None:
        """Set weights of a tap's linears to zero, one linear after another: they share second moments and a factor."""
        hessian, cold = (
            self._inputs.of_expert(input_group)
            if input_group.expert is not None
            else (self._inputs.second_moments(input_group), None)
        )
        step, prepared = mask_of(self._plan.steps), None
        assert step is not None
        solver = solver_of(step)
        for name in names:
            begun, weight = time.monotonic(), self._linear(name).weight.float()
            prepared = prepared or solver.prepare(hessian, step)
            done = solver.compress(weight, hessian, step, prepared)
            done = replace(done, fallback="; ".join(filter(None, (cold, done.fallback))) or None)
            self._replace(name, done.weight.to(self._stored))  # later layers must see what is served
            self._note(f"{self._block.prefix}.{name}", step.method, done, begun)

    def _collect(self) -> None:
        """Note what is stored dense: linears without a grid, and biases."""
        for name in self._there:
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
        self._block.results.append(linear_results.of(name, method, done, begun, share))


def _sample(weight: Tensor) -> Tensor:
    return weight[:SAMPLE_ROWS].to("cpu", torch.float32, copy=True)


def _set_weight(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    linear.out_features, linear.in_features = weight.shape
