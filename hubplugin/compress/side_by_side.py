"""One pass over the blocks of a folder's model for several variants, as far as memory reaches for them together.

It leaves finished blocks in the variants' folders, as passes that are killed at their end would: `stages.run_pass` goes
on from there. Knows one model and its variants; no manifest and no Hub.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from hubplugin import memory
from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.resume import Fingerprint
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
from hubplugin.compress import export, stages
from hubplugin.compress.blocks import blockwise
from hubplugin.compress.blocks.blockwise import VariantPass
from hubplugin.manifest.steps.training.base import Training
from hubplugin.model.architectures import architecture, configs, families
from hubplugin.model.devices import computing_dtype, free_device_memory
from hubplugin.plan import sizes
from hubplugin.plan.costs import workload
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress, track

Item = TypeVar("Item")


@dataclass(frozen=True)
class Target:
    """A variant, the folder that its pass writes to, and what its blocks are made from."""

    variant: VariantPlan
    out: Path
    fingerprint: Fingerprint


def run(base: Path, targets: Sequence[Target], tokens: Tensor) -> dict[str, float]:
    """Compress variants of the model in `base` side by side, with calibration tokens [sequences, tokens].

    Blocks that are the same in several variants, which differ in what is trained afterwards, are made once. By variant,
    the seconds that its blocks took; the base's activations count with the one that asked for them first. Where memory
    does not reach for all, so many at a time as it reaches for; a variant that would be alone is left to a pass of its
    own. For what the variants must have in common see `blockwise.side_by_side`.
    """
    device = stages.device_for(max((target.variant for target in targets), key=lambda variant: variant.memory.device))
    corrected = workload.corrected_tokens(targets[0].variant.steps, tokens.numel())
    seconds: dict[str, float] = {}
    kinds = alike(targets, _blocks_of)
    # without the base's activations there is nothing that different blocks could share
    parts = _fitting(base, kinds, tokens, device) if corrected else ([kind] for kind in kinds)
    for together in parts:
        if sum(len(same) for same in together) > 1:
            seconds |= _run(base, together, tokens, device)
    return seconds


def alike(items: Iterable[Item], what: Callable[[Item], object]) -> list[list[Item]]:
    """The items in their order, those together of which `what` is equal; it need not be hashable."""
    kinds: list[tuple[object, list[Item]]] = []
    for item in items:
        own = what(item)
        same = next((kind for other, kind in kinds if other == own), None)
        if same is None:
            kinds.append((own, [item]))
        else:
            same.append(item)
    return [kind for _, kind in kinds]


def _blocks_of(target: Target) -> tuple[object, ...]:
    """All that a pass over the blocks asks of a variant."""
    variant = target.variant
    return [step for step in variant.steps if not isinstance(step, Training)], variant.linears, variant.head


def _fitting(base: Path, kinds: Sequence[list[Target]], tokens: Tensor, device: str) -> Iterator[list[list[Target]]]:
    """The kinds of blocks in their order, as many at a time as memory reaches for."""
    free = memory.available() + memory.resident() if device == "cpu" else free_device_memory()
    together: list[list[Target]] = []
    for kind in kinds:
        wanted = [*together, kind]
        if together and _needed(base, [one.variant for one, *_ in wanted], tokens, device) > free:
            yield together
            wanted = [kind]
        together = wanted
    yield together


def _needed(base: Path, variants: Sequence[VariantPlan], tokens: Tensor, device: str) -> int:
    """Bytes: what one of them needs alone, hidden states and a block of the others, what the base keeps of a block."""
    config = configs.read_config(base, str(base))
    row = families.match(config, str(base))
    dims = architecture.dimensions(config, row, "config.json")
    number = computing_dtype(_stored(base, variants[0]), device).itemsize
    alone = max(one.memory.peak if device == "cpu" else one.memory.device for one in variants)
    shapes = architecture.linear_shapes(row, dims)
    inputs = sum(shapes[group.linears[0]][1] for group in row.input_groups if group.expert is None)
    corrected = workload.corrected_tokens(variants[0].steps, tokens.numel())
    block = sum(outputs * inputs for outputs, inputs in shapes.values()) * (number + 1)
    others = len(variants) - 1
    return alone + others * (tokens.numel() * dims.hidden * number + block) + corrected * inputs * number


def _stored(base: Path, variant: VariantPlan) -> torch.dtype:
    """Of the base's linears."""
    row = families.match(configs.read_config(base, str(base)), str(base))
    first = sizes.origin(row, f"{variant.linears[0].name}.weight", variant.sources)
    return TORCH_DTYPES[model_folder.headers(base)[first].dtype]


def _run(base: Path, kinds: Sequence[list[Target]], tokens: Tensor, device: str) -> dict[str, float]:
    row, stored = families.match(configs.read_config(base, str(base)), str(base)), _stored(base, kinds[0][0].variant)
    passes, folders, first = [], {}, 0
    for kind in kinds:
        of_kind = [export.Folder(one.out, base, one.variant, row, one.fingerprint) for one in kind]
        variant, least = min(
            zip((one.variant for one in kind), of_kind, strict=True), key=lambda pair: pair[1].finished
        )
        passes.append(VariantPass(stages.model_of(base, stored, device), variant, stored, least))
        folders[variant.name] = [(one.variant.name, folder) for one, folder in zip(kind, of_kind, strict=True)]
        first += least.finished
        stages.say_where_it_goes_on(variant, least)
    names = [name for of_kind in folders.values() for name, _ in of_kind]
    seconds, begun = dict.fromkeys(names, 0.0), time.monotonic()
    total = sum(one.plan.dims.layers + (one.plan.head is not None) for one in passes)
    progress(f"{', '.join(names)} | side by side: what they share is computed once")
    with track(f"{len(names)} variants", total=total, completed=first) as bar:
        for done, (one, block) in enumerate(blockwise.side_by_side(passes, tokens), start=first + 1):
            for name, folder in folders[one.plan.name]:
                seconds[name] += block.seconds
                if block.index >= folder.finished:
                    folder.add(block)
            left = (time.monotonic() - begun) / (done - first) * (total - done)
            bar.advance(stages.line(one.plan, block, left))
            del block
    return seconds
