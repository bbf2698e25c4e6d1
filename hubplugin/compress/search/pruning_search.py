"""Pruning search: the shape of a pruned model where the manifest leaves it open.

Sensitivities of layers, heads and widths are measured on the base, plan/choices/pruning_space.py chooses, the result is
a record of the report (docs/maths.md, Pruning). Knows a model and a space of shapes. Knows no folder and no engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from hubplugin.compress.search import latency, layer_dropping, sensitivity, width_curves
from hubplugin.compress.search.layer_dropping import LAYER
from hubplugin.compress.search.measurements import Dropped, Kept, Widths, load_or_measure
from hubplugin.errors import PlanError
from hubplugin.limits import REMOVAL_TOKENS
from hubplugin.model.architectures.architecture import BlockShape
from hubplugin.model.block_runner import Model
from hubplugin.plan.choices.pruning_space import Measured, Shape, Space, whole
from hubplugin.report import PrunedBlock, Removal, Shaping

FILE_NAME = "shape.json"


@dataclass(frozen=True)
class Goal:
    """What is searched for."""

    space: Space
    outside: int  # parameters outside the linears of blocks
    where: str  # the step's place in the manifest, for errors


def search(
    model: Model,
    tokens: Tensor,
    goal: Goal,
    spill: Path | None = None,
    kept_removals: Kept[Dropped] | None = None,
    kept_widths: Kept[Widths] | None = None,
) -> Shaping:
    """The shape of a variant, for calibration token ids [sequences, tokens].

    With `spill`, an empty folder, activations that second moments are summed over live there. What was measured for
    another target is taken from where it is kept. Raises PlanError where no shape meets the target.
    """
    space = goal.space
    if not space.aims:
        return _counted(model, tokens, space, kept_removals)
    removals: list[Removal] = []
    if not space.per_layer:
        removals = layer_dropping.drop(model, tokens, space, {LAYER: space.removals}, kept_removals)
    measuring = partial(width_curves.measure, model, tokens, space.finest(), spill)
    blocks = load_or_measure(kept_widths or Kept(), "shape", measuring).blocks
    attention = [{(heads, kv_heads): kl for heads, kv_heads, kl in one.heads} for one in blocks]
    layers = [(one.block, one.kl) for one in removals]
    shape, kl = _chosen(goal, Measured(attention, [dict(one.ffn) for one in blocks], layers))
    removed = [one for one in removals if one.block not in shape.sources]
    return _record(shape, kl, sensitivity.probe(tokens).numel(), removed)


def _chosen(goal: Goal, measured: Measured) -> tuple[Shape, float]:
    """The shape with the least predicted KL that meets the target, and its KL in nats per token."""
    space = goal.space
    cost, limit = space.weights, space.limit(goal.outside)
    if space.step.latency:
        cost = latency.measure(space)
        limit = space.step.latency * latency.of_base(cost, space)
    chosen = space.choose(measured, cost, limit)
    if chosen is None:
        raise PlanError(goal.where, "no shape is that small", "ask for less, or prune by kinds")
    return chosen


def _counted(model: Model, tokens: Tensor, space: Space, kept: Kept[Dropped] | None) -> Shaping:
    """As many layers and sublayers less as the manifest says; heads and widths as the manifest says."""
    step, (attention, mlp) = space.step, space.family.sublayers
    counts = {LAYER: step.layers or 0, attention.name: step.attention or 0, mlp.name: step.mlp or 0}
    removals = layer_dropping.drop(model, tokens, space, counts, kept)
    blocks = []
    for index in range(space.base.layers):
        removed = {one.what for one in removals if one.block == index}
        heads, kv_heads = (0, 0) if removed & {LAYER, attention.name} else space.heads[0]
        blocks.append(BlockShape(heads, kv_heads, 0 if removed & {LAYER, mlp.name} else space.widths[0]))
    return _record(
        whole(blocks),
        removals[-1].kl if removals else 0.0,
        sensitivity.first_sequences(tokens, REMOVAL_TOKENS).numel(),
        removals,
    )


def _record(shape: Shape, kl: float, tokens: int, removals: Sequence[Removal]) -> Shaping:
    return Shaping(
        predicted_kl=kl,
        tokens=tokens,
        removed=tuple(removals),
        blocks=tuple(
            PrunedBlock(source=source, heads=block.heads, kv_heads=block.kv_heads, ffn=block.ffn)
            for source, block in zip(shape.sources, shape.blocks, strict=True)
        ),
    )


def shape_of(record: Shaping) -> Shape:
    """The shape that a record names."""
    return Shape(
        tuple(block.source for block in record.blocks),
        tuple(BlockShape(block.heads, block.kv_heads, block.ffn) for block in record.blocks),
    )
