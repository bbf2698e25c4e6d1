"""Decides what a pruned model's blocks are, where the manifest leaves it open: measures, then lets `shaping` choose.

One pass over the base finds what fewer FFN channels and heads lose in every block, by OBS on calibration tokens, and
what one such loss does to the model's predictions: a few sequences run through with that change alone. Whole layers and
sub-blocks go one after the other, each time the one whose loss costs least KL (docs/maths.md, Pruning). What it found
is a record of the report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hubplugin.compress.blockwise import activations_folder
from hubplugin.compress.search import latency, sensitivity
from hubplugin.errors import PlanError
from hubplugin.limits import PROBE_TOKENS
from hubplugin.methods import obs
from hubplugin.model import kl_divergence
from hubplugin.model.activations import Batch, copied
from hubplugin.model.architecture import BlockShape
from hubplugin.model.block_runner import Model
from hubplugin.model.families import Sublayer, Width
from hubplugin.model.layer_inputs import second_moments
from hubplugin.plan.choices.pruning_space import Measured, Shape, Space, whole
from hubplugin.progress import progress
from hubplugin.report import PrunedBlock, Removal, Shaping

FILE_NAME = "shape.json"
TRIED = 0.5  # share of units that are left where a width's loss is turned into KL
LAYERS = "layer"
GROUPS, QUERIES, CHANNELS = "KV groups", "query heads", "channels"

Option = tuple[int, int]  # query heads, KV heads


@dataclass(frozen=True)
class _Curve:
    """What one linear loses as ever fewer of its input columns stay."""

    losses: dict[Any, float]  # relative, by choice of heads or width
    tried: Any  # the choice that was run through the model


def measured(
    model: Model, tokens: Tensor, space: Space, outside: int, where: str, spill: Path | None = None
) -> Shaping:
    """The shape of a variant, for calibration tokens [sequences, tokens].

    `outside` are the parameters outside the linears of blocks. With `spill`, an empty folder, activations that second
    moments are summed over live there. Raises PlanError where no shape meets the target.
    """
    few = sensitivity.first(tokens, PROBE_TOKENS)
    step = space.step
    if not space.aims:
        return _named(model, few, space)
    gone = _fall(model, few, space, [(LAYERS, _most_layers(space))]) if not space.per_layer else []
    attention, ffn = curves(model, tokens, few, space, spill)
    costs = Measured(attention, ffn, [(one.block, one.kl) for one in gone])
    cost, limit = space.weights, space.limit(outside)
    if step.latency:
        cost = latency.measured(space)
        limit = step.latency * latency.whole(cost, space)
    chosen = space.choose(costs, cost, limit)
    if chosen is None:
        raise PlanError(where, "no shape is that small", "ask for less, or prune by kinds")
    shape, kl = chosen
    removed = [one for one in gone if one.block not in shape.sources]
    return _record(shape, kl, few.numel(), removed)


def _named(model: Model, few: Tensor, space: Space) -> Shaping:
    """Layers and sub-blocks that a manifest counts, each the one that costs least when it goes."""
    step, (attention, mlp) = space.step, space.family.sublayers
    wanted = [(LAYERS, step.layers or 0), (attention.name, step.attention or 0), (mlp.name, step.mlp or 0)]
    removed = _fall(model, few, space, wanted)
    heads, width = space.heads[0], space.widths[0]
    blocks = []
    for index in range(space.base.layers):
        lost = {one.what for one in removed if one.block == index}
        kept = (0, 0) if lost & {LAYERS, attention.name} else heads
        blocks.append(BlockShape(*kept, 0 if lost & {LAYERS, mlp.name} else width))
    return _record(whole(blocks), removed[-1].kl if removed else 0.0, few.numel(), removed)


def _record(shape: Shape, kl: float, tokens: int, removed: Sequence[Removal]) -> Shaping:
    return Shaping(
        predicted_kl=kl,
        tokens=tokens,
        removed=tuple(removed),
        blocks=tuple(
            PrunedBlock(source=source, heads=one.heads, kv_heads=one.kv_heads, ffn=one.ffn)
            for source, one in zip(shape.sources, shape.blocks, strict=True)
        ),
    )


def shape_of(found: Shaping) -> Shape:
    """The shape that a record names."""
    return Shape(
        tuple(one.source for one in found.blocks),
        tuple(BlockShape(one.heads, one.kv_heads, one.ffn) for one in found.blocks),
    )


def _most_layers(space: Space) -> int:
    """Whole layers that a target may be met by: no more than its own share of them."""
    share = space.step.ratio or (1 - space.step.latency if space.step.latency else 0.5)
    return min(int(share * space.base.layers), space.base.layers - 1)


# -- whole layers and sub-blocks, one after the other


def _fall(model: Model, few: Tensor, space: Space, wanted: Sequence[tuple[str, int]]) -> list[Removal]:
    """Take away so many of each kind, always what costs least KL beside what is gone already."""
    kinds: dict[str, tuple[Sublayer, ...]] = {LAYERS: space.family.sublayers}
    kinds |= {part.name: (part,) for part in space.family.sublayers}
    left, gone = dict(wanted), list[Removal]()
    expected = model.hidden_states(few) if any(left.values()) else None
    while any(left.values()):
        assert expected is not None
        tried = [
            (index, what)
            for index in range(space.base.layers)
            for what, count in left.items()
            if count and _may_go(space, index, kinds[what], gone, kinds)
        ]
        if not tried:
            raise PlanError("prune", "nothing more can go", "remove less")
        kl = _without_each(model, few, expected, tried, gone, kinds)
        (index, what), least = min(zip(tried, kl, strict=True), key=lambda pair: pair[1])
        gone.append(Removal(block=index, what=what, kl=least))
        left[what] -= 1
        progress(f"shape | without {what} {index}: KL {least:.4f}")
    return gone


def _may_go(
    space: Space,
    index: int,
    parts: tuple[Sublayer, ...],
    gone: Sequence[Removal],
    kinds: Mapping[str, tuple[Sublayer, ...]],
) -> bool:
    """Whether nothing of it is gone yet, and what is left is a model that engines know."""
    lost = {part.name for one in gone if one.block == index for part in kinds[one.what]}
    if lost & {part.name for part in parts}:
        return False
    # DeciLM starts with attention, so the first block keeps its own
    return not (space.per_layer and index == 0 and space.family.sublayers[0] in parts)


def _without_each(
    model: Model,
    few: Tensor,
    expected: Tensor,
    tried: Sequence[tuple[int, str]],
    gone: Sequence[Removal],
    kinds: Mapping[str, tuple[Sublayer, ...]],
) -> list[float]:
    """KL of the model without what is gone and without each of these alone, in nats per token."""
    now, lanes = model.embed(few), dict[tuple[int, str], list[Batch]]()
    for index in range(len(model)):
        model.block(index)
        lost = [part for one in gone if one.block == index for part in kinds[one.what]]
        rest = sensitivity.without(model, index, lost)
        for lane in lanes.values():
            model.forward_block(index, lane, rest)
        for key in (key for key in tried if key[0] == index):
            lanes[key] = copied(now)
            model.forward_block(index, lanes[key], sensitivity.without(model, index, [*lost, *kinds[key[1]]]))
        model.forward_block(index, now, rest)
        model.free(index)
    return kl_divergence.divergences(model, expected, [model.final_norm(lanes[key]) for key in tried])


# -- widths and heads


def curves(
    model: Model, tokens: Tensor, few: Tensor, space: Space, spill: Path | None = None
) -> tuple[list[dict[Option, float]], list[dict[int, float]]]:
    """KL by block of each choice of heads and of each width, in nats per token; (0, 0) and 0 where blocks may differ.

    In proportion to the loss, through the point that was tried; without any of it, as measured.
    """
    some = sensitivity.first(tokens, sensitivity.MOMENT_TOKENS)
    seen, base = (
        model.embed(some, activations_folder(spill, "seen")),
        model.embed(few, activations_folder(spill, "probe")),
    )
    lanes: dict[tuple[int, str], list[Batch]] = {}
    found: dict[tuple[int, str], _Curve] = {}
    for index in range(len(model)):
        block = model.block(index)
        for lane in lanes.values():
            model.forward_block(index, lane)
        for width in space.family.widths:
            consumer = cast(nn.Linear, block.get_submodule(width.consumer))
            hessian = second_moments(model, index, seen, space.family.input_group_of(width.consumer))
            for name, (curve, tried) in _curves(width, consumer.weight.float(), hessian, space).items():
                found[index, name] = curve
                lanes[index, name] = sensitivity.reweighted(model, index, base, [consumer], tried, None)
            if space.per_layer:
                lane = lanes[index, f"no {width.name}"] = copied(base)
                model.forward_block(
                    index, lane, sensitivity.without(model, index, [space.family.sublayer_of(width.consumer)])
                )
        model.forward_block(index, seen)
        model.forward_block(index, base)
        model.free(index)
        progress(f"shape | block {index + 1:02d}/{len(model)} measured")
    expected = model.final_norm(base)
    found_kl = kl_divergence.divergences(model, expected, [model.final_norm(lane) for lane in lanes.values()])
    kl = dict(zip(lanes, found_kl, strict=True))
    attention, ffn = [], []
    for index in range(len(model)):
        own = space.base.heads, space.base.kv_heads
        attention.append({own: 0.0, (0, 0): kl.get((index, "no heads"), torch.inf)})
        ffn.append({space.base.ffn: 0.0, 0: kl.get((index, "no ffn"), torch.inf)})
        for name, costs in ((GROUPS, attention[-1]), (QUERIES, attention[-1]), (CHANNELS, ffn[-1])):
            if (index, name) in found:
                costs |= _scaled(found[index, name], kl[index, name])
    return attention, ffn


def _scaled(curve: _Curve, kl: float) -> dict[Any, float]:
    """KL of every choice: in proportion to its loss, through the one that was tried."""
    loss = curve.losses[curve.tried]
    return {choice: kl * each / loss if loss > 0 else 0.0 for choice, each in curve.losses.items()}


def _curves(width: Width, weight: Tensor, hessian: Tensor, space: Space) -> dict[str, tuple[_Curve, Tensor]]:
    """Every way in which the columns of a consumer's weight may go, under second moments; the weight of what is tried.

    Weights are [outputs, inputs].
    """
    base = space.base
    if width.name == "ffn":
        narrower = sorted((one for one in space.widths if one < base.ffn), reverse=True)
        return _walk(CHANNELS, weight, hessian, space, obs.Cut(1, 0), {one: one for one in narrower})
    each = base.heads // base.kv_heads
    groups = {one: one[1] for one in space.heads if one[1] < base.kv_heads}
    queries = {one: one[0] for one in space.heads if one[1] == base.kv_heads and one[0] < base.heads}
    group, single = obs.Cut(each * base.head_dim, 0), obs.Cut(base.head_dim, 0, segments=base.kv_heads)
    return {
        **_walk(GROUPS, weight, hessian, space, group, groups),
        **_walk(QUERIES, weight, hessian, space, single, queries),
    }


def _walk(
    name: str, weight: Tensor, hessian: Tensor, space: Space, cut: obs.Cut, units: Mapping[Any, int]
) -> dict[str, tuple[_Curve, Tensor]]:
    """One walk to the fewest units; `units` says how many each choice keeps. Nothing where there is no choice."""
    choices = sorted(units, key=lambda one: -units[one])
    if not choices:
        return {}
    stops = [units[one] for one in choices]
    found = obs.curve(weight, hessian, space.step, cut, stops)
    losses = {one: loss for one, (_, loss) in zip(choices, found, strict=True)}
    middle = TRIED * weight.shape[1] / cut.columns
    place = min(range(len(stops)), key=lambda at: abs(stops[at] - middle))
    tried = obs.repaired(weight, hessian, space.step, found[place][0])
    return {name: (_Curve(losses, choices[place]), tried)}
