"""Compresses a model block after block: every input group under the activations that it will really see.

A block's flow is straight: statistics of an input group -> `solve` -> new weights in the modules -> the next group ->
`block_record` -> forward to the next block. Knows the order of things; no mathematics, no file format and no Hub.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hubplugin import memory
from hubplugin.compress.blocks import base_walk, block_record, linear_results, solve, solve_factors
from hubplugin.compress.blocks.base_walk import BaseWalk
from hubplugin.compress.blocks.block_modules import BlockModules
from hubplugin.compress.blocks.block_record import AppliedGroup, Block, Quantized
from hubplugin.compress.blocks.block_task import BlockTask
from hubplugin.compress.blocks.solve_factors import FactorSteps
from hubplugin.manifest.methods import factorization_of, mask_of
from hubplugin.manifest.schema import Step
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.methods.base import solver_of
from hubplugin.model import staged_block
from hubplugin.model.activations import Batch, BlockActivations, copied
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.families import InputGroup
from hubplugin.model.block_runner import Model
from hubplugin.model.layer_inputs import BlockStatistics, GroupStatistics, second_moments_of
from hubplugin.plan.costs import workload
from hubplugin.plan.schemes import LinearPlan
from hubplugin.plan.variant_plan import VariantPlan


@dataclass(frozen=True)
class Calibration:
    """Token ids [sequences, tokens], and an empty folder for their activations; None: these stay in memory."""

    tokens: Tensor
    spill: Path | None = None


class Finished(Protocol):
    """Blocks that an interrupted run left: how many from the first on, and their dense tensors by name in the block."""

    finished: int

    def dense(self, index: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class VariantPass:
    """One pass over the blocks of a model, which makes a variant; dense weights are rounded to `stored`.

    Blocks that `finished` has are passed through as they are and not handed out again.
    """

    model: Model
    plan: VariantPlan
    stored: torch.dtype
    finished: Finished | None = None


def blocks(
    model: Model,
    calibration: Calibration,
    plan: VariantPlan,
    stored: torch.dtype,
    finished: Finished | None = None,
) -> Iterator[Block]:
    """Compress block after block; see `VariantPass`."""
    return (block for _, block in side_by_side([VariantPass(model, plan, stored, finished)], calibration))


def side_by_side(passes: Sequence[VariantPass], calibration: Calibration) -> Iterator[tuple[int, Block]]:
    """Compress variants of one base, each block in all of them before the next: the base's activations are computed
    once, and blocks are those of `blocks`, bit by bit. Each comes with its place among the passes.

    Each pass has a model of its own. All variants have all blocks of the base, with all sublayers, and are fitted to
    as many of its tokens, or to none.
    """
    first, *others = passes
    compressed, walk = embedded(first.model, calibration, first.plan.steps, len(passes))
    running = [_passed(first, compressed, walk, calibration.spill)]
    for number, one in enumerate(others, start=1):
        own = activations_folder(calibration.spill, f"compressed-{number}")
        running.append(_passed(one, one.model.embed(calibration.tokens, own), walk, calibration.spill))
    for made in zip_longest(*running):  # which asks one after another
        yield from ((place, block) for place, block in enumerate(made) if block)


def _passed(
    passing: VariantPass, compressed: list[Batch], walk: BaseWalk | None, spill: Path | None
) -> Iterator[Block | None]:
    """Block after block of one variant; None for one that was finished before."""
    model, plan = passing.model, passing.plan
    count = passing.finished.finished if passing.finished else 0
    for number, index in enumerate(plan.sources):
        started = time.monotonic()
        if number == 0 and walk:
            base_walk.skip(model, walk.batches, range(index))
        task = BlockTask(model, plan, number, passing.stored)
        modules = task.load(walk)
        activations = _activations(task, modules, compressed, walk, spill)
        block = None
        if passing.finished and number < count:
            modules.load(passing.finished.dense(number))
        else:
            block = compress_block(task, modules, activations)
        model.forward_block(index, compressed, modules.module)
        if walk:
            walk.leave(model, index, activations.base_after_pruned)
        if block:
            block = replace(block, seconds=time.monotonic() - started)
        del modules, activations  # and with them what the block was before
        model.free(index)
        memory.trim()
        yield block
        del block
    if plan.head and count <= len(plan.sources):
        yield _output_head(model, compressed, plan, plan.head)


def embedded(
    model: Model, calibration: Calibration, steps: Sequence[Step], variants: int = 1
) -> tuple[list[Batch], BaseWalk | None]:
    """What the first block is given: all tokens, and those that pass through the base too, for so many variants; None:
    there are none."""
    tokens, spill = calibration.tokens, calibration.spill
    compressed = model.embed(tokens, activations_folder(spill, "compressed"))
    corrected = workload.corrected_tokens(steps, tokens.numel())
    folder = activations_folder(spill, "base") if corrected else None
    return compressed, base_walk.begin(compressed, corrected, folder, variants)


def _output_head(model: Model, batches: list[Batch], plan: VariantPlan, head: LinearPlan) -> Block:
    """The output head as a block of its own: it reads what the final norm makes of the last hidden states."""
    started = time.monotonic()
    settings, hessian = plan.settings(head.name), second_moments_of(model.final_norm(batches)).matrix(head.name)
    assert settings is not None
    weight = model.source.get(f"{head.name}.weight").float()
    result = solve.quantize(weight, GroupStatistics(hessian, hessian), settings)
    assert result.coded is not None
    block = Block(len(plan.sources), head.name, head.name, encodings={head.name: result.coded})
    block.samples[head.name] = block_record.sample(result.weight)
    block.results.append(linear_results.of(head.name, result.results[0], time.monotonic() - started))
    return replace(block, seconds=time.monotonic() - started)


def activations_folder(spill: Path | None, name: str) -> Path | None:
    """A folder of its own for some batches' activations; None where they stay in memory."""
    if spill is None:
        return None
    (spill / name).mkdir(parents=True)
    return spill / name


def _activations(
    task: BlockTask, modules: BlockModules, compressed: list[Batch], walk: BaseWalk | None, spill: Path | None
) -> BlockActivations:
    """What goes into a block; of the base also what is behind anything pruned that follows the last sublayer."""
    if walk is None:
        return BlockActivations(compressed)
    if not (task.following or modules.sublayers[-1] != task.family.sublayers[-1]):
        return BlockActivations(compressed, walk.batches, base_is_shared=walk.shared)
    behind = copied(walk.batches, activations_folder(spill, f"base-{task.index}"))
    task.model.forward_block(task.index, behind, modules.base)
    base_walk.skip(task.model, behind, task.following)
    return BlockActivations(compressed, walk.batches, behind)


def compress_block(task: BlockTask, modules: BlockModules, activations: BlockActivations) -> Block:
    """Run all steps over the input groups of a block, in the order in which the block runs them."""
    modules.add_zero_biases(architecture.biased_linears(task.plan.config, task.plan.family))
    projection = modules.sublayers[-1].output_projection
    statistics = BlockStatistics(task.model, task.index, activations, modules.base, projection)
    groups = []
    for input_group in task.family.input_groups:
        if input_group.linears[0] not in modules.linears:
            continue
        _, steps = task.steps(input_group)
        if steps.changes_weights:
            groups.append(_compress_group(task, modules, statistics, input_group))
        if task.masked(input_group):
            groups.append(_mask_group(task, modules, statistics, input_group))
        if task.factored(input_group):
            groups.append(_factor_group(task, modules, statistics, input_group))
    block = Block(task.number, task.prefix, task.family.block.format(i=task.index))
    return block_record.finished(block, modules, groups)


def _compress_group(
    task: BlockTask, modules: BlockModules, statistics: BlockStatistics, input_group: InputGroup
) -> AppliedGroup:
    """Solve an input group under the inputs it sees now, and give its modules the answer."""
    started, (names, steps) = time.monotonic(), task.steps(input_group)
    weight = modules.stacked_weight(names)
    if steps.corrects_targets and _differs(task, input_group):
        captured = statistics.with_corrections(input_group, weight, steps.fits_biases)
    else:
        captured = statistics.of(input_group)
    result = solve.solve_group(weight, captured, steps)
    kept_outputs: dict[str, Tensor] = {}
    if result.kept is not None:
        width = next(width for width in task.family.widths if width.consumer in names)
        kept_outputs = modules.keep_outputs(width, result.kept)
        staged_block.drop_inputs(statistics.activations.compressed, task.family.sublayers, input_group.linears[0])
    modules.set_weights(names, result.weight)
    if result.bias_change is not None:
        modules.add_to_biases(names, result.bias_change, task.stored)
    quantized = {}
    for name, rows in zip(names, modules.rows(names), strict=True) if result.coded else ():
        assert result.coded is not None
        quantized[name] = Quantized(result.coded.rows(rows), block_record.sample(result.weight[rows]))
    label, seconds = linear_results.stack_name(task.prefix, names), time.monotonic() - started
    results = tuple(linear_results.of(label, step, seconds) for step in result.results)
    return AppliedGroup(results, quantized, kept_outputs)


def _differs(task: BlockTask, input_group: InputGroup) -> bool:
    """Whether the base can say more than the compressed model: the first group of the first block sees what the base
    sees, and the base routes other tokens to an expert."""
    return input_group.expert is None and (task.index, input_group) != (0, task.family.input_groups[0])


def _factor_group(
    task: BlockTask, modules: BlockModules, statistics: BlockStatistics, input_group: InputGroup
) -> AppliedGroup:
    """Put factors in the place of an input group's linears; those that stay whole are fitted to the base's outputs.

    Where a step asks for codes, both get them here: by vLLM's rule for stacks a group's linears have one scheme.
    """
    started, step, names = time.monotonic(), factorization_of(task.plan.steps), task.factored(input_group)
    assert step is not None
    ranks, quantization = [task.factors(name) for name in names], task.coding(names[0])
    assert quantization is None or isinstance(quantization, GridQuantization)  # the plan refuses others
    if not step.qep and not any(ranks) and quantization is None:
        return AppliedGroup(())
    weights = [modules.stacked_weight((name,)) for name in names]
    if step.qep and _differs(task, input_group):
        captured = statistics.with_corrections(input_group, torch.cat(weights))
    else:
        captured = statistics.of(input_group)
    steps = FactorSteps(step, quantization, task.stored)
    solved, shared = solve_factors.factor(weights, captured, steps, ranks)
    factored = {}
    for name, one, own in zip(names, solved, ranks, strict=True):
        stored = one.encoding is not None and (own is None or own.stored)
        modules.set_weights((name,), one.weight if stored else one.weight.to(task.stored))  # later layers see that
        if stored:
            assert one.encoding is not None
            factored[name] = Quantized(one.encoding, block_record.sample(one.weight))
    stack, count = linear_results.stack_name(task.prefix, names), sum(len(one.results) for one in solved)
    seconds = (time.monotonic() - started) / max(count, 1)
    results = tuple(
        linear_results.of(stack if shared else f"{task.prefix}.{name}", result, seconds)
        for name, one in zip(names, solved, strict=True)
        for result in one.results
    )
    return AppliedGroup(results, factored)


def _mask_group(
    task: BlockTask, modules: BlockModules, statistics: BlockStatistics, input_group: InputGroup
) -> AppliedGroup:
    """Mask an input group's linears one after another: they share second moments and what is made of these."""
    step, captured, results = mask_of(task.plan.steps), statistics.of(input_group), []
    assert step is not None
    prepared = solver_of(step).prepare(captured.second_moments, step)
    for name in task.masked(input_group):
        started = time.monotonic()
        result = solve.solve_mask(modules.stacked_weight((name,)), captured, step, prepared)
        modules.set_weights((name,), result.weight.to(task.stored))  # later layers must see what is served
        seconds = time.monotonic() - started
        results.append(linear_results.of(f"{task.prefix}.{name}", result.results[0], seconds))
    return AppliedGroup(tuple(results))
