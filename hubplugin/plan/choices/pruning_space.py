"""What a pruned model's blocks may be: shapes that a manifest names, and those among which measured costs decide.

Arithmetic on sizes and settings; KL costs are given, and weights are not known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hubplugin.limits import PROBE_TOKENS, REMOVAL_TOKENS
from hubplugin.manifest.steps.prune import Prune
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.architecture import BlockShape, Dimensions
from hubplugin.model.architectures.families import Family
from hubplugin.plan import sizes
from hubplugin.plan.choices import knapsack, pruned_sizes
from hubplugin.plan.choices.knapsack import Choice

POOL = 10  # layers that are tried again after one was removed: those that added least when they were tried last
FINALISTS = 3  # of them that are tried on whole sequences


@dataclass(frozen=True)
class Shape:
    """Which blocks of the base stay, in order, and what each becomes."""

    sources: tuple[int, ...]
    blocks: tuple[BlockShape, ...]

    @property
    def uniform(self) -> bool:
        """Whether all blocks are alike."""
        return len(set(self.blocks)) == 1

    def dimensions(self, base: Dimensions) -> Dimensions:
        """The sizes of a model of this shape. Where blocks differ, its own width is the widest of theirs."""
        heads, kv_heads, ffn = (
            max(getattr(block, key) for block in self.blocks) for key in ("heads", "kv_heads", "ffn")
        )
        blocks = () if self.uniform else self.blocks
        return replace(base, layers=len(self.blocks), heads=heads, kv_heads=kv_heads, ffn=ffn, blocks=blocks)


@dataclass(frozen=True)
class Cost:
    """What a sublayer costs, in any one unit: weights, or seconds per token."""

    attention: Mapping[tuple[int, int], float]  # by (query heads, KV heads)
    ffn: Mapping[int, float]  # by width
    rest: float = 0.0  # outside the layers


@dataclass(frozen=True)
class Measured:
    """KL that each change alone was measured or predicted to cost, in nats per token."""

    attention: Sequence[Mapping[tuple[int, int], float]]  # by block of the base, and option; (0, 0): none left
    ffn: Sequence[Mapping[int, float]]  # by block of the base, and width; 0: none left, where blocks may differ
    layers: Sequence[tuple[int, float]]  # whole layers as they go, one after the other, and the KL once it is gone


@dataclass(frozen=True)
class Space:
    """What measurements decide among."""

    step: Prune
    family: Family
    base: Dimensions
    widths: tuple[int, ...]  # of FFNs, narrowest first; the base's own is the last
    heads: tuple[tuple[int, int], ...]  # of (query heads, KV heads); the base's own is the last

    @property
    def per_layer(self) -> bool:
        """Whether blocks may differ."""
        return self.step.layout == "per-layer"

    @property
    def aims(self) -> bool:
        """Whether one target is set for all that is removed."""
        return any(getattr(self.step, key) is not None for key in Prune.targets)

    @property
    def probes(self) -> int:
        """How many changes of single blocks are run through the model at one time, where costs are measured."""
        if not self.step.measures:
            return 0
        groups = any(kv_heads < self.base.kv_heads for _, kv_heads in self.heads)
        queries = any(kv_heads == self.base.kv_heads for _, kv_heads in self.heads[:-1])
        ways = (1 + groups + queries) * self.aims + (2 if self.per_layer else 1)
        return ways * self.base.layers

    @property
    def removals(self) -> int:
        """Layers and sublayers that are removed one after another; for a target, no larger a ratio of the layers than
        it is."""
        if not self.aims:
            return sum(self.step.counts.values())
        if self.per_layer:
            return 0
        ratio = self.step.ratio or (1 - self.step.latency if self.step.latency else 0.5)
        return min(int(ratio * self.base.layers), self.base.layers - 1)

    @property
    def tried(self) -> int:
        """Changes that are run through the model in all, on PROBE_TOKENS each."""
        again = max(0, self.removals - 1) * min(POOL, self.base.layers)
        return self.probes + again + self.removals * FINALISTS * REMOVAL_TOKENS // PROBE_TOKENS

    @cached_property
    def weights(self) -> Cost:
        """Weights of the linears."""

        def count(block: BlockShape) -> float:
            dims = replace(self.base, heads=block.heads, kv_heads=block.kv_heads, ffn=block.ffn)
            return sizes.block_parameters(self.family, dims)

        return Cost(
            attention={(0, 0): 0.0, **{option: count(BlockShape(*option, 0)) for option in self.heads}},
            ffn={0: 0.0, **{width: count(BlockShape(0, 0, width)) for width in self.widths}},
        )

    def limit(self, outside: int) -> float:
        """Weights of linears that a target leaves; `outside` are the parameters of everything else."""
        total = sizes.linear_parameters(self.family, self.base)
        if self.step.ratio:
            return total * (1 - self.step.ratio)
        return float((self.step.params or 0) - outside - self._biases)

    @property
    def _biases(self) -> int:
        """Biases at most that a pruned model has and its base has not."""
        outputs = {name: shape[0] for name, shape in architecture.linear_shapes(self.family, self.base).items()}
        if self.step.bias:
            return self.base.layers * sum(outputs.values())
        added = self.family.biased and self.family.width("heads").consumer  # its class has the others' already
        return self.base.layers * outputs[added] if added else 0

    def before_measuring(self, outside: int) -> Shape:
        """What is planned with before anything is measured: every block loses alike, the last layers go."""
        unpruned = BlockShape(self.base.heads, self.base.kv_heads, self.base.ffn)
        if self.aims:  # before anything is timed, time is taken to go by weights
            total = sizes.linear_parameters(self.family, self.base)
            return self._nearest(self.step.latency * total if self.step.latency else self.limit(outside))
        kept = self.base.layers - (self.step.layers or 0)
        blocks = [replace(unpruned, heads=self.heads[0][0], kv_heads=self.heads[0][1], ffn=self.widths[0])] * kept
        for index in range(self.step.attention or 0):
            blocks[kept - 1 - index] = replace(blocks[kept - 1 - index], heads=0, kv_heads=0)
        for index in range(self.step.mlp or 0):
            blocks[kept - 1 - index] = replace(blocks[kept - 1 - index], ffn=0)
        return Shape(tuple(range(kept)), tuple(blocks))

    def _nearest(self, limit: float) -> Shape:
        """The widest FFN that fits with all heads and layers; else fewer layers."""
        cost, heads = self.weights, self.heads[-1]
        for layers in range(self.base.layers, 0, -1):
            for width in reversed(self.widths):
                if layers * (cost.attention[heads] + cost.ffn[width]) <= limit + self.slack(cost):
                    return Shape(tuple(range(layers)), (BlockShape(*heads, width),) * layers)
        return Shape((0,), (BlockShape(*self.heads[0], self.widths[0]),))

    def slack(self, cost: Cost) -> float:
        """How far above a ratio the nearest shape may lie: half of the smallest step. A number is a limit."""
        if self.step.params or len(self.widths) < 2:
            return 0.0
        step = cost.ffn[self.widths[-1]] - cost.ffn[self.widths[-2]]
        return step / 2 * (1 if self.per_layer else self.base.layers)

    def measured_for(self) -> list[Any]:
        """All of the space that measurements depend on, as JSON: of a target only that there is one; counts of one kind
        of removal differ in how far it goes, and counts of several also in the order."""
        counts = self.step.counts
        settings = self.step.model_dump(mode="json", exclude={*Prune.kinds, *Prune.targets})
        return [
            settings,
            self.heads if self.aims else None,
            sorted(counts) if len(counts) == 1 else sorted(counts.items()),
        ]

    def finest(self) -> "Space":
        """The same with all widths that the base may be cut to: what is measured for one group size serves another."""
        return replace(self, widths=pruned_sizes.widths(self.base.ffn, None, self.per_layer))

    def choose(self, measured: Measured, cost: Cost, limit: float) -> tuple[Shape, float] | None:
        """The shape within a limit that is predicted to cost the least KL, and that KL; None where none fits."""
        return self._uneven(measured, cost, limit) if self.per_layer else self._even(measured, cost, limit)

    def _even(self, measured: Measured, cost: Cost, limit: float) -> tuple[Shape, float] | None:
        """All combinations of how many layers, which heads and which width."""
        best: tuple[float, Shape] | None = None
        for removed, kl_of_layers in self._depths(measured):
            kept = [index for index in range(self.base.layers) if index not in removed]
            for heads in self.heads:
                for width in self.widths:
                    per_layer = cost.attention[heads] + cost.ffn[width]
                    if len(kept) * per_layer + cost.rest > limit + self.slack(cost):
                        continue
                    kl = kl_of_layers + sum(measured.attention[i][heads] + measured.ffn[i][width] for i in kept)
                    if best is None or kl < best[0]:
                        best = kl, Shape(tuple(kept), (BlockShape(*heads, width),) * len(kept))
        return None if best is None else (best[1], best[0])

    def _depths(self, measured: Measured) -> Iterator[tuple[set[int], float]]:
        yield set(), 0.0
        removed: set[int] = set()
        for index, kl in measured.layers:
            removed = removed | {index}
            yield removed, kl

    def _uneven(self, measured: Measured, cost: Cost, limit: float) -> tuple[Shape, float] | None:
        """A width and heads for every block; the first block keeps some attention."""
        items, options = [], []
        for index in range(self.base.layers):
            kept = [*self.heads] if index == 0 else [(0, 0), *self.heads]
            items.append([Choice(int(cost.attention[option]), measured.attention[index][option]) for option in kept])
            options.append(kept)
        widths = (0, *self.widths)
        for index in range(self.base.layers):
            items.append([Choice(int(cost.ffn[option]), measured.ffn[index][option]) for option in widths])
        chosen = knapsack.solve(items, int(limit + self.slack(cost) - cost.rest))
        if chosen is None:
            return None
        kl = sum(item[index].loss for item, index in zip(items, chosen, strict=True))
        blocks = [
            BlockShape(*options[index][chosen[index]], widths[chosen[self.base.layers + index]])
            for index in range(self.base.layers)
        ]
        return whole(blocks), kl


def unchanged(base: Dimensions) -> Shape:
    """All blocks as they are."""
    return Shape(tuple(range(base.layers)), base.shapes())


def whole(blocks: Sequence[BlockShape]) -> Shape:
    """A shape without the blocks that have neither attention nor FFN."""
    kept = [(index, block) for index, block in enumerate(blocks) if block.heads or block.ffn]
    return Shape(tuple(index for index, _ in kept), tuple(block for _, block in kept))
