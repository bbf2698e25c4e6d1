"""Which block of the base a variant's block comes from, and what the plan asks of its linears.

Knows plans and sizes; no statistics, no mathematics and no file.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from hubplugin.compress.blocks.base_walk import BaseWalk
from hubplugin.compress.blocks.block_modules import BlockModules
from hubplugin.compress.blocks.solve import GroupSteps
from hubplugin.manifest.steps.quantization import Quantization
from hubplugin.methods import obs
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family, InputGroup
from hubplugin.model.block_runner import Model
from hubplugin.plan.schemes import Factors
from hubplugin.plan.variant_plan import VariantPlan


@dataclass(frozen=True)
class BlockTask:
    """One block of a variant, by its number there."""

    model: Model
    plan: VariantPlan
    number: int
    stored: torch.dtype  # of dense weights in the checkpoint

    @property
    def index(self) -> int:
        """The block of the base that it comes from."""
        return self.plan.sources[self.number]

    @property
    def following(self) -> range:
        """The base's blocks behind it that the variant does not have."""
        sources = (*self.plan.sources, len(self.model))
        return range(self.index + 1, sources[self.number + 1])

    @property
    def family(self) -> Family:
        """The base's row of the table."""
        return self.model.family

    @property
    def prefix(self) -> str:
        """The block's path in the variant."""
        return self.family.block.format(i=self.number)

    @cached_property
    def sizes(self) -> Dimensions:
        """The block's sizes in the variant."""
        return self.plan.dims.at(self.number)

    def load(self, walk: BaseWalk | None) -> BlockModules:
        """The block's modules, filled with the base's weights; with `walk` beside the block as the base has it."""
        module = self.model.block(self.index)
        base = walk.block(self.model, self.index) if walk else module
        modules = BlockModules(module, base, self.family, self.model.dims, self.sizes)
        modules.remove_sublayers()
        return modules

    def steps(self, input_group: InputGroup) -> tuple[tuple[str, ...], GroupSteps]:
        """The linears of an input group that change together, and what is asked of them. Linears that a step of factors
        works on are not among them: their codes are made with their factors."""
        factored = self.factored(input_group)
        settings = {name: self.coding(name) for name in input_group.linears}
        quantized = tuple(name for name, step in settings.items() if step and name not in factored)
        quantization = settings[quantized[0]] if quantized else None
        steps = GroupSteps(self.plan.prune, self.cuts(input_group), quantization, self.model.dtype, self.stored)
        return quantized or input_group.linears, steps

    def masked(self, input_group: InputGroup) -> tuple[str, ...]:
        """The linears of an input group that a mask is for."""
        return tuple(name for name in input_group.linears if self.plan.mask(f"{self.prefix}.{name}"))

    def factored(self, input_group: InputGroup) -> tuple[str, ...]:
        """The linears of an input group that become two factors, or are fitted as they stay dense."""
        return tuple(name for name in input_group.linears if self.plan.factorization(f"{self.prefix}.{name}"))

    def factors(self, name: str) -> Factors | None:
        """What a linear becomes, by its path inside the block; None: it stays dense."""
        return self.plan.linear(f"{self.prefix}.{name}").factors

    def coding(self, name: str) -> Quantization | None:
        """How a linear, or its factors, are quantized, by its path inside the block; None: they are not."""
        return self.plan.settings(f"{self.prefix}.{name}")

    def keeps_outputs(self, name: str) -> bool:
        """Whether the variant has all outputs of a linear. Where some go, they cannot make up for errors of others."""
        shrunk = [width for width in self.family.widths if self.cuts(self.family.input_group_of(width.consumer))]
        return not any(name in width.sources for width in shrunk)

    def cuts(self, input_group: InputGroup) -> tuple[obs.Cut, ...]:
        """What the input columns of a linear lose, if it is the consumer of a width that shrinks."""
        before, after, linear = self.model.dims, self.sizes, input_group.linears[0]
        if self.plan.prune is None:
            return ()
        if linear == self.family.width("ffn").consumer and after.ffn < before.ffn:
            return (obs.Cut(1, after.ffn),)
        if linear != self.family.width("heads").consumer:
            return ()
        cuts, group_size = [], before.heads // before.kv_heads
        if after.kv_heads < before.kv_heads:
            cuts.append(obs.Cut(group_size * before.head_dim, after.kv_heads))
        if after.heads // after.kv_heads < group_size:
            cuts.append(obs.Cut(before.head_dim, after.heads, segments=after.kv_heads))
        return tuple(cuts)
