"""Compresses a model block after block: every input group under the activations that it will really see.

A block's flow is straight: `input_groups` makes its linears, `block_record` what is kept of it, and its outputs go into
the next block. Knows the order of things; no mathematics, no file format and no Hub.
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
from hubplugin.compress.blocks import (
    base_walk,
    block_record,
    input_groups,
    linear_results,
    output_gradients,
    solve,
)
from hubplugin.compress.blocks.base_walk import BaseWalk
from hubplugin.compress.blocks.block_modules import BlockModules
from hubplugin.compress.blocks.block_record import Block
from hubplugin.compress.blocks.block_task import BlockTask
from hubplugin.compress.blocks.output_gradients import OutputGradients
from hubplugin.manifest.methods import grid_of
from hubplugin.manifest.schema import Step
from hubplugin.model.activations import Batch, BlockActivations, copied
from hubplugin.model.block_runner import Model
from hubplugin.model.layer_inputs import GroupStatistics, second_moments_of
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
    gradients = _output_gradients(passes, calibration)
    compressed, walk = embedded(first.model, calibration, first.plan.steps, len(passes))
    running = [_passed(first, compressed, walk, gradients.get(_fisher_tokens(first.plan)), calibration.spill)]
    for number, one in enumerate(others, start=1):
        own = activations_folder(calibration.spill, f"compressed-{number}")
        embedding = one.model.embed(calibration.tokens, own)
        running.append(_passed(one, embedding, walk, gradients.get(_fisher_tokens(one.plan)), calibration.spill))
    for made in zip_longest(*running):  # which asks one after another
        yield from ((place, block) for place, block in enumerate(made) if block)


def _output_gradients(passes: Sequence[VariantPass], calibration: Calibration) -> dict[int, OutputGradients]:
    """By how many tokens they are wanted of: those at the base's outputs, where a variant with blocks to make asks."""
    tokens, measured = calibration.tokens, dict[int, OutputGradients]()
    for one in passes:
        wanted, finished = _fisher_tokens(one.plan), one.finished.finished if one.finished else 0
        if wanted and wanted not in measured and finished < len(one.plan.sources):
            some = tokens[base_walk.every_nth(len(tokens), tokens.shape[1], wanted)]
            folder = activations_folder(calibration.spill, f"gradients-{wanted}")
            measured[wanted] = output_gradients.measured(one.model, some, folder)
    return measured


def _fisher_tokens(plan: VariantPlan) -> int:
    step = grid_of(plan.steps)
    return step.fisher_tokens if step else 0


def _passed(
    passing: VariantPass,
    compressed: list[Batch],
    walk: BaseWalk | None,
    gradients: OutputGradients | None,
    spill: Path | None,
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
            block = input_groups.compress_block(task, modules, activations, gradients)
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
