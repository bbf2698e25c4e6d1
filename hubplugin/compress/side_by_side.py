"""One pass over the blocks of a folder's model for several variants, as far as memory reaches for them together.

It leaves finished blocks in the variants' folders, as passes that are killed at their end would: `stages.run_pass` goes
on from there. Knows one model and its variants; no manifest and no Hub.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from hubplugin import memory
from hubplugin.compress import stages
from hubplugin.compress.stages import Target
from hubplugin.manifest.steps.training.base import Training
from hubplugin.model.architectures import architecture, configs, families
from hubplugin.model.devices import computing_dtype, free_device_memory
from hubplugin.plan.costs import workload
from hubplugin.plan.variant_plan import VariantPlan

Item = TypeVar("Item")


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
            seconds |= stages.compress(base, together, tokens, device)
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
    number = computing_dtype(stages.stored_dtype(base, variants[0]), device).itemsize
    alone = max(one.memory.peak if device == "cpu" else one.memory.device for one in variants)
    shapes = architecture.linear_shapes(row, dims)
    inputs = sum(shapes[group.linears[0]][1] for group in row.input_groups if group.expert is None)
    corrected = workload.corrected_tokens(variants[0].steps, tokens.numel())
    block = sum(outputs * inputs for outputs, inputs in shapes.values()) * (number + 1)
    others = len(variants) - 1
    return alone + others * (tokens.numel() * dims.hidden * number + block) + corrected * inputs * number
