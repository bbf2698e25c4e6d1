"""Width sensitivity: the KL that fewer FFN channels, KV groups or query heads cost, block by block.

OBS says what every width loses in a block's output, on second moments of calibration tokens. One width of each curve is
run through the model with everything else as in the base; KL of the others is taken to be in proportion to their loss
(docs/maths.md, Pruning). Knows blocks and OBS. Knows no target.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from hubplugin.compress.search import sensitivity
from hubplugin.compress.search.measurements import Costs, Widths
from hubplugin.manifest.steps.prune import Prune
from hubplugin.methods import obs
from hubplugin.model.activations import Batch, copied
from hubplugin.model.architectures.families import Width
from hubplugin.model.block_runner import Model
from hubplugin.model.layer_inputs import second_moments
from hubplugin.plan.choices.pruning_space import Space
from hubplugin.progress import progress

PROBED = 0.5  # ratio of units kept by the width that is run through the model
GROUPS, QUERIES, CHANNELS = "KV groups", "query heads", "channels"

Heads = tuple[int, int]  # query heads, KV heads


@dataclass(frozen=True)
class LossCurve:
    """What a linear's output loses as fewer and fewer of its input columns are kept."""

    losses: dict[Any, float]  # relative, by choice: Heads, or a width
    probed: Any  # the choice that is run through the model

    def predicted_kl(self, kl: float) -> dict[Any, float]:
        """KL of every choice in proportion to its loss, through `kl` of the one that was run through the model."""
        probed_loss = self.losses[self.probed]
        return {choice: kl * loss / probed_loss if probed_loss > 0 else 0.0 for choice, loss in self.losses.items()}


def measure(model: Model, tokens: Tensor, space: Space, spill: Path | None = None) -> Widths:
    """What each choice of heads and each width of a space costs, by block.

    Second moments are those of ids `tokens` [sequences, tokens], KL is on beginnings of sequences. A block without a
    sublayer is measured where the prune layout is per-layer. With `spill`, an empty folder, activations that second
    moments are summed over live there.
    """
    begun = time.monotonic()
    calibration, base = sensitivity.activations(model, tokens, spill)
    changed: dict[tuple[int, str], list[Batch]] = {}  # activations of the model with one change, by block and change
    curves: dict[tuple[int, str], LossCurve] = {}
    for index in range(len(model)):
        block = model.block(index)
        for batches in changed.values():
            model.forward_block(index, batches)
        for width in space.family.widths:
            consumer = cast(nn.Linear, block.get_submodule(width.consumer))
            hessian = second_moments(model, index, calibration, space.family.input_group_of(width.consumer))
            for name, (curve, weight) in _curves(width, consumer.weight.float(), hessian, space).items():
                curves[index, name] = curve
                changed[index, name] = sensitivity.forward_reweighted(model, index, copied(base), [consumer], weight)
            if space.per_layer:
                batches = changed[index, f"no {width.name}"] = copied(base)
                without = sensitivity.block_without(model, index, [space.family.sublayer_of(width.consumer)])
                model.forward_block(index, batches, without)
        model.forward_block(index, calibration)
        model.forward_block(index, base)
        model.free(index)
        progress(f"shape | block {index + 1:02d}/{len(model)} measured")
    kl = sensitivity.divergences(model, base, changed.values())
    costs = _by_block(space, curves, dict(zip(changed, kl, strict=True)))
    return Widths(blocks=costs, seconds=round(time.monotonic() - begun, 2))


def _by_block(
    space: Space, curves: Mapping[tuple[int, str], LossCurve], kl: Mapping[tuple[int, str], float]
) -> tuple[Costs, ...]:
    """Measured KL by block and change -> KL by block and choice."""
    blocks = []
    for index in range(space.base.layers):
        attention: dict[Heads, float] = {(space.base.heads, space.base.kv_heads): 0.0}
        ffn: dict[int, float] = {space.base.ffn: 0.0}
        for name, costs in ((GROUPS, attention), (QUERIES, attention), (CHANNELS, ffn)):
            if (index, name) in curves:
                costs |= curves[index, name].predicted_kl(kl[index, name])
        if space.per_layer:
            attention[0, 0], ffn[0] = kl[index, "no heads"], kl[index, "no ffn"]
        blocks.append(Costs(heads=tuple((*heads, one) for heads, one in attention.items()), ffn=tuple(ffn.items())))
    return tuple(blocks)


def _curves(width: Width, weight: Tensor, hessian: Tensor, space: Space) -> dict[str, tuple[LossCurve, Tensor]]:
    """The curves of a consumer's weight [outputs, inputs] under second moments, and the weight that is probed.

    By kind of unit: channels of an FFN, or KV groups and query heads, where the space has choices of them.
    """
    base = space.base
    if width.name == "ffn":
        narrower = sorted((one for one in space.widths if one < base.ffn), reverse=True)
        kinds: dict[str, tuple[obs.Cut, dict[Any, int]]] = {CHANNELS: (obs.Cut(1, 0), {one: one for one in narrower})}
    else:
        queries_per_group = base.heads // base.kv_heads
        groups = {one: one[1] for one in space.heads if one[1] < base.kv_heads}
        queries = {one: one[0] for one in space.heads if one[1] == base.kv_heads and one[0] < base.heads}
        kinds = {
            GROUPS: (obs.Cut(queries_per_group * base.head_dim, 0), dict(groups)),
            QUERIES: (obs.Cut(base.head_dim, 0, segments=base.kv_heads), dict(queries)),
        }
    return {
        kind: _curve(weight, hessian, space.step, cut, kept_units)
        for kind, (cut, kept_units) in kinds.items()
        if kept_units
    }


def _curve(
    weight: Tensor, hessian: Tensor, step: Prune, cut: obs.Cut, kept_units: Mapping[Any, int]
) -> tuple[LossCurve, Tensor]:
    """One pass of OBS down to the fewest units; `kept_units` says how many units each choice keeps."""
    choices = sorted(kept_units, key=lambda choice: -kept_units[choice])
    stops = [kept_units[choice] for choice in choices]
    pruned = obs.curve(weight, hessian, step, cut, stops)
    losses = {choice: loss for choice, (_, loss) in zip(choices, pruned, strict=True)}
    middle = PROBED * weight.shape[1] / cut.columns
    nearest = min(range(len(stops)), key=lambda number: abs(stops[number] - middle))
    return LossCurve(losses, choices[nearest]), obs.repaired(weight, hessian, step, pruned[nearest][0])
