"""Runs a variant's steps over the input groups of one block, each under the inputs that it will really see.

Statistics of an input group -> `solve` -> new weights in the modules -> the next group. Knows the order inside a block;
no mathematics, no file format and no other block.
"""

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hubplugin.compress.blocks import block_record, linear_results, solve, solve_factors
from hubplugin.compress.blocks.block_modules import BlockModules
from hubplugin.compress.blocks.block_record import AppliedGroup, Block, Quantized
from hubplugin.compress.blocks.block_task import BlockTask
from hubplugin.compress.blocks.output_gradients import OutputGradients
from hubplugin.compress.blocks.solve_factors import FactorSteps
from hubplugin.manifest.methods import factorization_of, mask_of
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.methods.base import solver_of
from hubplugin.methods.gptq.two_sided import OutputFactor
from hubplugin.model import staged_block
from hubplugin.model.activations import BlockActivations
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.families import InputGroup
from hubplugin.model.layer_inputs import BlockStatistics


def compress_block(
    task: BlockTask, modules: BlockModules, activations: BlockActivations, gradients: OutputGradients | None = None
) -> Block:
    """Run all steps over the input groups of a block, in the order in which the block runs them."""
    outputs = gradients.of_block(task.index, modules.base) if gradients else {}
    modules.add_zero_biases(architecture.biased_linears(task.plan.config, task.plan.family))
    projection = modules.sublayers[-1].output_projection
    statistics = BlockStatistics(task.model, task.index, activations, modules.base, projection)
    groups = []
    for input_group in task.family.input_groups:
        if input_group.linears[0] not in modules.linears:
            continue
        _, steps = task.steps(input_group)
        if steps.changes_weights:
            groups.append(_compress_group(task, modules, statistics, input_group, outputs))
        if task.masked(input_group):
            groups.append(_mask_group(task, modules, statistics, input_group))
        if task.factored(input_group):
            groups.append(_factor_group(task, modules, statistics, input_group))
    block = Block(task.number, task.prefix, task.family.block.format(i=task.index))
    return block_record.finished(block, modules, groups)


def _compress_group(
    task: BlockTask,
    modules: BlockModules,
    statistics: BlockStatistics,
    input_group: InputGroup,
    outputs: Mapping[str, OutputFactor],
) -> AppliedGroup:
    """Solve an input group under the inputs it sees now, and give its modules the answer."""
    started, (names, steps) = time.monotonic(), task.steps(input_group)
    weight = modules.stacked_weight(names)
    if steps.corrects_targets and _differs(task, input_group):
        captured = statistics.with_corrections(input_group, weight, steps.fits_biases)
    else:
        captured = statistics.of(input_group)
    if steps.quantization and all(name in outputs and task.keeps_outputs(name) for name in names):
        captured = replace(captured, outputs=tuple(outputs[name] for name in names))
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
