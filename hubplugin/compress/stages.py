"""From a base's folder to a variant's: one sweep over its blocks, or a sweep, recovery, and a sweep over what it made.

Every phase takes folders and leaves a folder, so that a killed run goes on in the phase it was killed in. Knows no Hub,
no evaluation and no card.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hubplugin import memory
from hubplugin.checkpoint import model_folder, training_checkpoints
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.weight_source import WeightSource
from hubplugin.compress import block_record, blockwise, export
from hubplugin.compress.gptqmodel import backend
from hubplugin.manifest.methods import Kind, kind_of, recovery_of
from hubplugin.manifest.recover import Recover
from hubplugin.manifest.schema import Document, Step
from hubplugin.model import configs, families
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import computing_dtype, default_device, device_with, free_device_memory
from hubplugin.model.prefetch import Prefetch
from hubplugin.plan import planner, sizes
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress
from hubplugin.report import LinearResult, Recovery

SPILL = ".activations"
PRUNED, RECOVERED = ".pruned", ".recovered"  # folders of phases, inside the variant's in the making
FOLDERS = (PRUNED, RECOVERED)


@dataclass(frozen=True)
class Made:
    """What is known of a variant's weights once they are written."""

    results: list[LinearResult]
    samples: dict[str, Tensor]  # rows that the gate compares, by linear
    peak: int  # bytes of memory at most
    recovery: Recovery | None = None


Recovering = Callable[[Path, Path, Recover, list[int]], Recovery]  # student, out, step, what its blocks stand for


def run(
    document: Document,
    base: Path,
    variant: VariantPlan,
    tokens: Tensor,
    out: Path,
    identity: dict[str, str],
    recovering: Recovering,
) -> Made:
    """Write a variant's weights, config.json and tokenizer to `out`, from a base's folder and calibration tokens.

    `identity` says what they are made from, and what an interrupted run left is taken up where that is the same.
    """
    later = (at for at, step in enumerate(variant.steps) if at and kind_of(step) is not Kind.QUANTIZE)
    if (place := next(later, None)) is None:  # pruning and codes are one sweep
        return sweep(base, variant, tokens, out, identity)
    pruned = _part(document, base, variant, variant.steps[:place])
    first = sweep(base, pruned, tokens, out / PRUNED, identity)
    step, source, rest, recovery = variant.steps[place], out / PRUNED, variant.steps[place:], None
    if (training := recovery_of([step])) is not None:
        recovery = recovering(source, out / RECOVERED, training, stands_for(variant, base))
        source, rest = out / RECOVERED, variant.steps[place + 1 :]
    if rest:
        second = sweep(source, _part(document, source, variant, rest), tokens, out, identity)
        return Made([*first.results, *second.results], second.samples, max(first.peak, second.peak), recovery)
    for file in (file for file in source.iterdir() if file.name != training_checkpoints.FOLDER):
        shutil.copyfile(file, out / file.name)
    return Made(first.results, _samples(out, variant), memory.peak(), recovery)


def _part(document: Document, base: Path, variant: VariantPlan, steps: Sequence[Step]) -> VariantPlan:
    return planner.part(document, configs.read_config(base, str(base)), model_folder.headers(base), variant, steps)


def stands_for(variant: VariantPlan, base: Path) -> list[int]:
    """For each block of a variant the base's block whose output it should match: the last before the next it keeps."""
    layers = configs.read_config(base, str(base))["num_hidden_layers"]
    return [after - 1 for after in (*variant.sources[1:], layers)]


def _samples(made: Path, variant: VariantPlan) -> dict[str, Tensor]:
    """Rows of linears that training wrote: there is nothing else to compare them with than what was written."""
    view = DenseView(made)
    return {one.name: view.get(f"{one.name}.weight")[: block_record.SAMPLE_ROWS].float() for one in variant.linears}


def sweep(base: Path, variant: VariantPlan, tokens: Tensor, out: Path, identity: dict[str, str]) -> Made:
    """One pass over the blocks of a folder's model; goes on after the last block that an interrupted one finished."""
    out.mkdir(exist_ok=True)
    config = configs.read_config(base, str(base))
    source: WeightSource = DenseView(base)
    row = families.match(config, str(base))
    if backend.step_of(variant):
        made = backend.compress(base, out, tokens, variant, row)
        return Made(made.results, made.samples, made.peak)
    first = sizes.origin(row, f"{variant.linears[0].name}.weight", variant.sources)
    stored = export.DTYPES[model_folder.headers(base)[first].dtype]
    device = device_for(variant)
    dtype = computing_dtype(stored, device)
    if device != "cpu":
        prefixes = [row.block.format(i=index) for index in range(config["num_hidden_layers"])]
        source = Prefetch(source, prefixes, device, dtype)
    model = Model(source, config, row, dtype, device)
    target = export.Folder(out, base, variant, row, identity)
    if target.finished:
        of = f"{target.finished:02d}/{variant.dims.layers}"
        progress(f"{variant.name} | goes on after block {of} of an interrupted run")
    if target.finished < variant.dims.layers + (variant.head is not None):
        with spilling(variant, out) if device == "cpu" else nullcontext() as spill:
            _blocks(variant, tokens, target, model, stored, spill)
    results, samples = target.results(), target.samples()
    target.finish(keep_journal=True)  # until evaluation and gate are through, too
    return Made(results, samples, memory.peak())


def device_for(variant: VariantPlan) -> str:
    """Where a variant is compressed: on a CUDA device that has the memory for it, else on the CPU."""
    needed = variant.memory.device
    if default_device() == "cpu" or device_with(needed) == "cuda":
        return device_with(needed)
    free = free_device_memory()
    progress(f"{variant.name} | {needed / 1e9:.1f} GB of the GPU are planned, {free / 1e9:.1f} GB are free: on the CPU")
    return "cpu"


def _blocks(
    variant: VariantPlan, tokens: Tensor, target: export.Folder, model: Model, stored: torch.dtype, spill: Path | None
) -> None:
    """Compress all blocks that are not finished yet, with a line of progress for each."""
    begun, first, count = time.monotonic(), target.finished, variant.dims.layers
    for block in blockwise.blocks(model, blockwise.Calibration(tokens, spill), variant, stored, target):
        target.add(block)
        left = (time.monotonic() - begun) / (block.index + 1 - first) * (count - block.index - 1)
        place = f"block {block.index + 1:02d}/{count}" if block.index < count else block.prefix
        progress(
            f"{variant.name} | {place} | {_worst(block)} | {block.seconds:.1f}s | "
            f"peak {memory.peak() / 1e9:.1f} GB | eta {max(left, 0):.0f}s"
        )
        del block  # before the next one is made


def _worst(block: block_record.Block) -> str:
    """The linear of a block that lost most, in words."""
    if not block.results:
        return "left dense"
    worst = max(block.results, key=lambda result: result.loss or 0.0)
    return f"worst loss {worst.loss or 0:.5f} {worst.name.removeprefix(block.prefix + '.')}"


@contextmanager
def spilling(variant: VariantPlan, folder: Path) -> Iterator[Path | None]:
    """A folder for activations where they do not fit into memory beside the rest; None where they do."""
    planned, free = variant.memory, memory.available() + memory.resident()
    if planned.peak <= free:
        yield None
        return
    progress(
        f"{variant.name} | {planned.peak / 1e9:.1f} GB are planned, {free / 1e9:.1f} GB are free: activations take "
        f"{planned.disk / 1e9:.1f} GB on disk, {planned.spilled / 1e9:.1f} GB stay in memory"
    )
    memory.spare()
    spill = folder / SPILL
    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir()
    try:
        yield spill
    finally:
        shutil.rmtree(spill, ignore_errors=True)
