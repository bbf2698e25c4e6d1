"""Rank search: spreads the weights that a ratio leaves over all linears that become factors.

One pass over the base takes the spectrum of every linear and every stack on second moments of calibration tokens, and
the KL of each group alone at two ranks, on a few sequences. KL of other ranks lies on lines through what these leave
out; plan/choices/ranks.py chooses (docs/maths.md, Low rank). Knows blocks and factors. Knows no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from hubplugin.compress.blocks.blockwise import activations_folder
from hubplugin.compress.search import sensitivity
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.methods import lowrank
from hubplugin.methods.linear_algebra import Prepared
from hubplugin.model.activations import Batch, copied
from hubplugin.model.block_runner import Model
from hubplugin.model.layer_inputs import second_moments
from hubplugin.plan.choices.ranks import Group, Losses, RankSpace, Sensitivity
from hubplugin.plan.schemes import Factors
from hubplugin.progress import progress
from hubplugin.report import RankedGroup, Ranking

FILE_NAME = "ranks.json"
PROBES = 2  # ranks of each group, at most, that are run through the model


@dataclass(frozen=True)
class Measured:
    """What ranks lose, by group of a space, and what some of them do to the model."""

    losses: list[Losses]
    sensitivities: list[Sensitivity]  # KL(base || base with that group alone of some rank), at its probes
    tokens: int  # that KL is the mean over


def search(model: Model, tokens: Tensor, space: RankSpace, step: LowRank, spill: Path | None = None) -> Ranking:
    """The ranks of all groups that fit with the least predicted KL, for token ids [sequences, tokens].

    With `spill`, an empty folder, activations live there instead of in memory. Raises CompressError where activations
    are not finite.
    """
    return ranking(space, measure(model, tokens, space, step, spill))


def ranking(space: RankSpace, measured: Measured) -> Ranking:
    """What a space chooses by measured losses."""
    chosen = space.choose(measured.losses, measured.sensitivities)
    groups = tuple(
        RankedGroup(
            name=group.name,
            ranks=one.ranks,
            shared=one.shared,
            weights=one.weights,
            loss=one.loss,
            kl=sensitivity.kl(one.loss),
        )
        for group, one, sensitivity in zip(space.groups, chosen, measured.sensitivities, strict=True)
    )
    return Ranking(predicted_kl=sum(one.kl for one in groups), tokens=measured.tokens, groups=groups)


def factors(space: RankSpace, record: Ranking) -> dict[str, Factors]:
    """The factors of every linear that has some, by its full path."""
    return space.factors((one.ranks, one.shared) for one in record.groups)


def measure(model: Model, tokens: Tensor, space: RankSpace, step: LowRank, spill: Path | None = None) -> Measured:
    """One pass over the base with calibration token ids [sequences, tokens], in the model's dtype.

    Second moments come from the first MOMENT_TOKENS of them, in complete sequences, KL from beginnings of sequences.
    Raises CompressError where activations are not finite.
    """
    calibration, base = sensitivity.activations(model, tokens, spill)
    changed: dict[tuple[str, int], list[Batch]] = {}  # by group and rank: activations where that group alone is cut
    losses, lost = dict[str, Losses](), dict[tuple[str, int], float]()
    for index in range(len(model)):
        block, prefix = model.block(index), model.family.block.format(i=index) + "."
        for batches in changed.values():
            model.forward_block(index, batches)
        for group in (group for group in space.groups if group.linears[0].name.startswith(prefix)):
            paths = [one.name.removeprefix(prefix) for one in group.linears]
            hessian = second_moments(model, index, calibration, model.family.input_group_of(paths[0]))
            linears = [cast(nn.Linear, block.get_submodule(path)) for path in paths]
            losses[group.name], cuts = _losses(group, linears, hessian, step)
            for rank, (weight, loss) in cuts.items():
                key = group.name, rank
                batches = copied(base, activations_folder(spill, f"{group.name}-{rank}"))
                changed[key] = sensitivity.forward_reweighted(model, index, batches, linears, weight)
                lost[key] = loss
        model.forward_block(index, calibration)
        model.forward_block(index, base)
        model.free(index)
        progress(f"ranks | block {index + 1:02d}/{len(model)} measured")
    kl = dict(zip(changed, sensitivity.divergences(model, base, changed.values()), strict=True))
    return Measured(
        losses=[losses[group.name] for group in space.groups],
        sensitivities=[
            Sensitivity(tuple((lost[group.name, rank], kl[group.name, rank]) for rank in group.probes))
            for group in space.groups
        ],
        tokens=sensitivity.probe(tokens).numel(),
    )


def _losses(
    group: Group, linears: Sequence[nn.Linear], hessian: Tensor, step: LowRank
) -> tuple[Losses, dict[int, tuple[Tensor, float]]]:
    """What every rank loses; by rank that is probed the weight [outputs, inputs] of the stack, and its loss."""
    weights = [linear.weight.float() for linear in linears]
    prepared, stacked = lowrank.prepare(hessian, step), torch.cat(weights)
    whole = lowrank.spectrum(stacked, prepared)
    energy = max(float(whole.sum()), torch.finfo(torch.float32).tiny)
    separate = [
        _left_out(weight, prepared, group.ranks(one)) for weight, one in zip(weights, group.linears, strict=True)
    ]
    losses = Losses(
        shared=tuple(left / energy for left in _tails(whole, group.shared_ranks)),
        separate=tuple(tuple(left / energy for left in own) for own in separate),
    )
    cuts = {
        rank: (lowrank.compress(stacked, hessian, step, prepared, rank=rank).weight, left / energy)
        for rank, left in zip(group.probes, _tails(whole, group.probes), strict=True)
    }
    return losses, cuts


def _left_out(weight: Tensor, prepared: Prepared, ranks: Sequence[int]) -> list[float]:
    """The energy that each rank of a weight leaves out."""
    return _tails(lowrank.spectrum(weight, prepared), ranks) if ranks else []


def _tails(energies: Tensor, ranks: Sequence[int]) -> list[float]:
    """Sums of all but the first r, for each r."""
    return [float(energies[rank:].double().sum()) for rank in ranks]
