"""EoRA's pass over the blocks of a finished variant: an adapter that makes up for its weights' error, block by block.

Every linear is corrected under the inputs that it will see: those of the variant's own weights with the adapter's
factors in all earlier linears. A killed pass goes on after its last finished block. Knows the order of things; the
mathematics is in methods/eora.py.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hubplugin import memory
from hubplugin.checkpoint.adapters import peft_folder
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.encodings import LowRank
from hubplugin.checkpoint.format_names import LORA_A, LORA_B, lora
from hubplugin.checkpoint.resume import Fingerprint, FinishedBlocks
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
from hubplugin.compress import stages
from hubplugin.compress.blocks import block_record, blockwise, linear_results, solve
from hubplugin.compress.blocks.base_walk import BaseWalk
from hubplugin.compress.blocks.block_modules import BlockModules
from hubplugin.compress.blocks.blockwise import Calibration
from hubplugin.manifest.methods import closed_form_of
from hubplugin.manifest.steps.adapter import Eora
from hubplugin.model.activations import BlockActivations
from hubplugin.model.architectures.families import InputGroup
from hubplugin.model.block_runner import Model
from hubplugin.model.layer_inputs import BlockStatistics
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import track
from hubplugin.report import LinearResult


@dataclass(frozen=True)
class CorrectedBlock:
    """One block of the adapter."""

    tensors: dict[str, Tensor]  # by PEFT's names, in the dtype they are stored in
    samples: dict[str, Tensor]  # by linear: the first rows of B A, float32 [rows, inputs]
    results: list[LinearResult]


@dataclass(frozen=True)
class _Pass:
    """What all blocks share."""

    model: Model  # the base's, whose modules are given the variant's weights
    parent: DenseView  # the variant that is corrected
    plan: VariantPlan
    step: Eora
    stored: torch.dtype  # of the factors


def run(
    folders: tuple[Path, Path], variant: VariantPlan, tokens: Tensor, out: Path, fingerprint: Fingerprint
) -> tuple[stages.PassResult, dict[str, Tensor]]:
    """Make an adapter with calibration tokens [sequences, tokens]; its tensors by PEFT's names.

    `folders` are those of the base and of the variant that it is for. Blocks are kept in `out`, under `fingerprint`,
    which says what they are made from. Raises CompressError where those in there were made from something else.
    """
    base, parent = folders
    adapter, step = variant.adapter, closed_form_of(variant.steps)
    assert adapter is not None and step is not None
    done, count = FinishedBlocks(out, fingerprint), variant.dims.layers
    stages.say_where_it_goes_on(variant, len(done))
    if len(done) < count:
        stored = TORCH_DTYPES[next(iter(adapter.tensors.values())).dtype]
        device = stages.device_for(variant)
        settings = _Pass(stages.model_of(base, stored, device), DenseView(parent), variant, step, stored)
        with stages.spilling(variant, out) if device == "cpu" else nullcontext() as spill:
            _run_blocks(settings, Calibration(tokens, spill), done)
    every = range(count)
    results = [result for index in every for result in done.results(index)]
    samples = {name: rows for index in every for name, rows in done.samples(index).items()}
    tensors = {name: tensor for index in every for name, tensor in _tensors(done, index).items()}
    return stages.PassResult(results, samples, memory.peak()), tensors


def _tensors(done: FinishedBlocks, index: int) -> dict[str, Tensor]:
    reader = done.reader(index)
    return {name: reader.get(name) for name in reader.headers if name.endswith((LORA_A, LORA_B))}


def _run_blocks(settings: _Pass, calibration: Calibration, done: FinishedBlocks) -> None:
    """Correct all blocks that are not finished yet, with a line of progress for each."""
    begun, first, count = time.monotonic(), len(done), settings.plan.dims.layers
    with track(settings.plan.name, total=count, completed=first) as bar:
        for index, block in _blocks(settings, calibration, done):
            done.add(index, block.tensors, block.samples, block.results)
            left = (time.monotonic() - begun) / (index + 1 - first) * (count - index - 1)
            worst = max(result.loss or 0.0 for result in block.results)
            bar.advance(
                f"{settings.plan.name} | block {index + 1:02d}/{count} | worst loss {worst:.5f} | "
                f"peak {memory.peak() / 1e9:.1f} GB | eta {max(left, 0):.0f}s"
            )


def _blocks(settings: _Pass, calibration: Calibration, done: FinishedBlocks) -> Iterator[tuple[int, CorrectedBlock]]:
    """Block after block; those that are finished are passed through and not handed out again."""
    model = settings.model
    compressed, walk = blockwise.embedded(model, calibration, settings.plan.steps)
    finished = len(done)
    for index in range(settings.plan.dims.layers):
        modules, weights = _load(settings, index, walk)
        block = None
        if index < finished:
            _add(settings, modules, weights, index, _tensors(done, index))
        else:
            activations = BlockActivations(compressed, walk.batches if walk else None)
            block = _correct(settings, modules, weights, index, activations)
        model.forward_block(index, compressed, modules.module)
        if walk:
            walk.leave(model, index)
        model.free(index)
        del modules, weights
        memory.trim()
        if block:
            yield index, block


def _load(settings: _Pass, index: int, walk: BaseWalk | None) -> tuple[BlockModules, dict[str, Tensor]]:
    """A block's modules with the variant's weights beside a copy of the base's; the variant's linears in float32."""
    model = settings.model
    module = model.block(index)
    base = walk.block(model, index) if walk else model.copy_block(index)
    modules = BlockModules(module, base, model.family, model.dims, model.dims)
    dense = dict(settings.parent.below(_prefix(settings, index)))
    for name, parameter in list(module.named_parameters()):  # of norms too, which tuning changes; the copy shares them
        owner, _, part = name.rpartition(".")
        setattr(module.get_submodule(owner), part, nn.Parameter(dense[name].to(parameter), requires_grad=False))
    return modules, {name: dense[f"{name}.weight"].to(model.device, torch.float32) for name in modules.linears}


def _prefix(settings: _Pass, index: int) -> str:
    return settings.model.family.block.format(i=index)


def _add(
    settings: _Pass, modules: BlockModules, weights: Mapping[str, Tensor], index: int, tensors: Mapping[str, Tensor]
) -> None:
    """Give a block the weights it was finished with."""
    for name, weight in weights.items():
        b, a = (tensors[lora(f"{_prefix(settings, index)}.{name}", part)] for part in (LORA_B, LORA_A))
        modules.set_weights((name,), weight + LowRank(b, a).dense().to(weight.device))


def _correct(
    settings: _Pass,
    modules: BlockModules,
    weights: Mapping[str, Tensor],
    index: int,
    activations: BlockActivations,
) -> CorrectedBlock:
    """Factors for all linears of a block, one input group after another, in the order in which the block runs them."""
    projection = modules.sublayers[-1].output_projection
    statistics = BlockStatistics(settings.model, index, activations, modules.base, projection)
    block = CorrectedBlock({}, {}, [])
    for input_group in settings.model.family.input_groups:
        _correct_group(settings, modules, weights, statistics, input_group, block)
    return block


def _correct_group(
    settings: _Pass,
    modules: BlockModules,
    weights: Mapping[str, Tensor],
    statistics: BlockStatistics,
    input_group: InputGroup,
    block: CorrectedBlock,
) -> None:
    """Factors for the linears of an input group, added to its modules and to `block`."""
    started, prefix = time.monotonic(), _prefix(settings, statistics.index)
    wanted = [_base_weight(modules, name) for name in input_group.linears]
    if settings.step.qep:
        captured = statistics.with_corrections(input_group, torch.cat(wanted))
    else:
        captured = statistics.of(input_group)
    held = [weights[name] for name in input_group.linears]
    solved = solve.correct(wanted, held, captured, settings.step, settings.stored)
    seconds = (time.monotonic() - started) / len(solved)
    for name, (made, result) in zip(input_group.linears, solved, strict=True):
        assert isinstance(made.encoding, LowRank)
        modules.set_weights((name,), made.weight)
        linear = f"{prefix}.{name}"
        block.tensors.update(peft_folder.factors(linear, made.encoding.b.cpu(), made.encoding.a.cpu()))
        block.samples[linear] = block_record.sample(made.encoding.dense())
        block.results.append(linear_results.of(linear, result, seconds))


def _base_weight(modules: BlockModules, name: str) -> Tensor:
    weight: Tensor = modules.base.get_submodule(name).weight  # type: ignore[assignment]
    return weight.float()
