"""One pass over the blocks of a folder's model, which leaves the folder of a compressed one; where and in what memory.

A killed pass goes on after its last finished block. Knows one pass: which of them make a variant, and in which order,
is the pipeline's. Knows no Hub, no evaluation and no card.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hubplugin import memory
from hubplugin.checkpoint import model_folder, resume
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
from hubplugin.compress import export
from hubplugin.compress.blocks import block_record, blockwise
from hubplugin.compress.blocks.blockwise import Calibration, VariantPass
from hubplugin.compress.gptqmodel import backend
from hubplugin.model.architectures import configs, families
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import computing_dtype, default_device, device_with, free_device_memory
from hubplugin.model.prefetch import Prefetch
from hubplugin.plan import sizes
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress, track
from hubplugin.report import LinearResult

SPILL = ".activations"


@dataclass(frozen=True)
class Target:
    """A variant, the folder that its pass writes to, and what its blocks are made from."""

    variant: VariantPlan
    out: Path
    fingerprint: resume.Fingerprint


@dataclass(frozen=True)
class PassResult:
    """What a pass leaves beside its folder."""

    results: list[LinearResult]  # of all blocks, those of an interrupted run among them
    samples: dict[str, Tensor]  # rows that the gate compares, float32 [rows, inputs] by full name of the linear
    peak: int  # bytes of memory at most


def stands_for(variant: VariantPlan, layers: int) -> list[int]:
    """For each block of a variant the base's block whose output it should match: the last before the next it keeps.

    `layers` is the number of the base's blocks.
    """
    return [after - 1 for after in (*variant.sources[1:], layers)]


def stored_samples(folder: Path, variant: VariantPlan) -> dict[str, Tensor]:
    """First rows of linears as a folder stores them: training wrote them, and there is nothing else to compare."""
    view = DenseView(folder)
    names = [linear.name for linear in variant.linears]
    return {name: view.get(f"{name}.weight")[: block_record.SAMPLE_ROWS].float() for name in names}


def run_pass(
    base: Path, variant: VariantPlan, tokens: Tensor, out: Path, fingerprint: resume.Fingerprint
) -> PassResult:
    """One pass over the blocks of the model in `base`, with calibration tokens [sequences, tokens]; writes to `out`.

    `fingerprint` says what blocks are made from. Goes on after the last block that an interrupted pass finished, and
    raises CompressError where that was made from something else.
    """
    out.mkdir(exist_ok=True)
    row = families.match(configs.read_config(base, str(base)), str(base))
    if backend.step_of(variant):
        done = backend.compress(base, out, tokens, variant, row)
        return PassResult(done.results, done.samples, done.peak)
    target = export.Folder(out, base, variant, row, fingerprint)
    if target.finished < variant.dims.layers + (variant.head is not None):
        compress(base, [[Target(variant, out, fingerprint)]], tokens, device_for(variant))
    results, samples = target.results(), target.samples()
    target.finish(keep_blocks=True)  # until evaluation and gate are through, too
    return PassResult(results, samples, memory.peak())


def compress(base: Path, kinds: Sequence[list[Target]], tokens: Tensor, device: str) -> dict[str, float]:
    """Compress all blocks that are not finished yet, with a line of progress for each; by variant, their seconds.

    Targets of one kind have the same blocks, which are made once. Of several kinds, see `blockwise.side_by_side`.
    """
    passes = [_begin(base, kind, device) for kind in kinds]
    names = [name for one in passes for name in one.folders]
    if len(names) > 1:
        progress(f"{', '.join(names)} | side by side: what they share is computed once")
    first = sum(one.finished for one in passes)
    total = sum(one.plan.dims.layers + (one.plan.head is not None) for one in passes)
    seconds, begun = dict.fromkeys(names, 0.0), time.monotonic()
    title = names[0] if len(names) == 1 else f"{len(names)} variants"
    with _spilling(kinds, device) as spill, track(title, total=total, completed=first) as bar:
        made = blockwise.side_by_side([one.blocks for one in passes], Calibration(tokens, spill))
        for done, (number, block) in enumerate(made, start=first + 1):
            one = passes[number]
            for name, folder in one.folders.items():
                seconds[name] += block.seconds
                if block.index >= folder.finished:
                    folder.add(block)
            left = (time.monotonic() - begun) / (done - first) * (total - done)
            bar.advance(_line(one.plan, block, left))
            del block  # before the next one is made
    return seconds


@dataclass(frozen=True)
class _Pass:
    """The pass that makes one kind of blocks, and the folders that they go to, by variant."""

    blocks: VariantPass
    folders: dict[str, export.Folder]

    @property
    def plan(self) -> VariantPlan:
        return self.blocks.plan

    @property
    def finished(self) -> int:
        """Blocks that an interrupted run has left in all folders."""
        return min(folder.finished for folder in self.folders.values())


def _begin(base: Path, kind: Sequence[Target], device: str) -> _Pass:
    row, stored = families.match(configs.read_config(base, str(base)), str(base)), stored_dtype(base, kind[0].variant)
    folders = {one.variant.name: export.Folder(one.out, base, one.variant, row, one.fingerprint) for one in kind}
    least = min(kind, key=lambda one: folders[one.variant.name].finished).variant
    folder = folders[least.name]
    say_where_it_goes_on(least, folder.finished)
    return _Pass(VariantPass(model_of(base, stored, device), least, stored, folder), folders)


def say_where_it_goes_on(variant: VariantPlan, finished: int) -> None:
    """One line of progress where an interrupted run has left finished blocks."""
    if finished:
        progress(f"{variant.name} | goes on after block {finished:02d}/{variant.dims.layers} of an interrupted run")


def _spilling(kinds: Sequence[list[Target]], device: str) -> AbstractContextManager[Path | None]:
    """A folder for activations where those of one kind of blocks do not fit into memory; several kinds do."""
    target = kinds[0][0]
    return spilling(target.variant, target.out) if device == "cpu" and len(kinds) == 1 else nullcontext()


def stored_dtype(base: Path, variant: VariantPlan) -> torch.dtype:
    """Of the base's linears."""
    row = families.match(configs.read_config(base, str(base)), str(base))
    first = sizes.origin(row, f"{variant.linears[0].name}.weight", variant.sources)
    return TORCH_DTYPES[model_folder.headers(base)[first].dtype]


def model_of(folder: Path, stored: torch.dtype, device: str) -> Model:
    """A folder's model, block by block; on a GPU the next block is read ahead. `stored` is the dtype of its weights."""
    config, dtype = configs.read_config(folder, str(folder)), computing_dtype(stored, device)
    row, source = families.match(config, str(folder)), DenseView(folder)
    if device == "cpu":
        return Model(source, config, row, dtype, device)
    prefixes = [row.block.format(i=index) for index in range(config["num_hidden_layers"])]
    return Model(Prefetch(source, prefixes, device, dtype), config, row, dtype, device)


def device_for(variant: VariantPlan) -> str:
    """Where a variant is compressed: on a CUDA device that has the memory for it, else on the CPU."""
    needed = variant.memory.device
    if default_device() == "cpu" or device_with(needed) == "cuda":
        return device_with(needed)
    free = free_device_memory()
    progress(f"{variant.name} | {needed / 1e9:.1f} GB of the GPU are planned, {free / 1e9:.1f} GB are free: on the CPU")
    return "cpu"


def _line(variant: VariantPlan, block: block_record.Block, left: float) -> str:
    """What is said of a block that is done; `left` are the seconds that the rest will take."""
    count = variant.dims.layers
    place = f"block {block.index + 1:02d}/{count}" if block.index < count else block.prefix
    return (
        f"{variant.name} | {place} | {_worst(block)} | {block.seconds:.1f}s | "
        f"peak {memory.peak() / 1e9:.1f} GB | eta {max(left, 0):.0f}s"
    )


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
