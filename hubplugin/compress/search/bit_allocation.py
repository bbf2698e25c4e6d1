"""Spends a budget: measures what each option of each unit loses and what a unit's loss does to the model's predictions,
then lets the knapsack choose.

One pass over the base, one block of it in memory. Losses are GPTQ's own, on calibration tokens; what turns them into KL
is measured: a few sequences run through the model once for every unit, with that unit alone quantized (docs/maths.md,
Allocation). Knows no file format; what it found is a record of the report.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from hubplugin.compress.blockwise import activations_folder
from hubplugin.compress.search import sensitivity
from hubplugin.limits import PROBE_TOKENS
from hubplugin.manifest.gptq import Quantization
from hubplugin.methods import linear_algebra
from hubplugin.methods.gptq import gptq
from hubplugin.model import kl_divergence
from hubplugin.model.activations import Batch
from hubplugin.model.block_runner import Model
from hubplugin.model.layer_inputs import second_moments
from hubplugin.plan.choices.mixed_precision import Budget, Unit
from hubplugin.plan.schemes import Scheme
from hubplugin.progress import progress
from hubplugin.report import AllocatedUnit, Allocation

FILE_NAME = "allocation.json"
PROBE_BITS = 3  # the fewest that units are tried with: what 2 bits do to a model is not in proportion to the loss


@dataclass(frozen=True)
class Measured:
    """What every option of every unit loses, and what one of them does to the model."""

    losses: list[list[float]]  # tr((W-W')H(W-W')^T) / tr(W H W^T), by unit and option
    probes: list[int]  # the option of each unit that was tried alone
    kl: list[float]  # nats per token, KL(base || base with that unit alone quantized)
    tokens: int  # that `kl` is the mean over

    def predicted(self) -> list[list[float]]:
        """KL by unit and option: in proportion to the loss, through the measured point."""
        return [
            [kl * loss / own[probe] if own[probe] > 0 else 0.0 for loss in own]
            for own, probe, kl in zip(self.losses, self.probes, self.kl, strict=True)
        ]


def spend(model: Model, tokens: Tensor, budget: Budget, step: Quantization, spill: Path | None = None) -> Allocation:
    """The options of all units that fit the budget with the least predicted KL; calibration tokens [sequences, tokens].

    With `spill`, an empty folder, activations live there instead of in memory.
    """
    measured = measure(model, tokens, budget.units, step, spill)
    kl = measured.predicted()
    chosen = budget.choose(kl)
    return Allocation(
        predicted_kl=sum(own[index] for own, index in zip(kl, chosen, strict=True)),
        tokens=measured.tokens,
        units=tuple(
            AllocatedUnit(
                name=unit.name,
                bits=unit.options[index].bits,
                group_size=unit.options[index].group_size,
                symmetric=unit.options[index].symmetric,
                bytes=unit.costs[index],
                loss=measured.losses[number][index],
                kl=kl[number][index],
            )
            for number, (unit, index) in enumerate(zip(budget.units, chosen, strict=True))
        ),
    )


def schemes(budget: Budget, found: Allocation) -> dict[str, Scheme]:
    """Every allocated linear's scheme, by its full path."""
    wanted = [(unit.bits, unit.group_size, unit.symmetric) for unit in found.units]
    known = [[(one.bits, one.group_size, one.symmetric) for one in unit.options] for unit in budget.units]
    return budget.schemes([options.index(one) for one, options in zip(wanted, known, strict=True)])


def measure(
    model: Model, tokens: Tensor, units: Sequence[Unit], step: Quantization, spill: Path | None = None
) -> Measured:
    """One pass over the base with calibration tokens [sequences, tokens], in the model's dtype.

    Second moments come from the first MOMENT_TOKENS of them, KL from the first PROBE_TOKENS, in whole sequences.
    Raises CompressError where activations are not finite.
    """
    some, few = (sensitivity.first(tokens, most) for most in (sensitivity.MOMENT_TOKENS, PROBE_TOKENS))
    seen, base = (
        model.embed(some, activations_folder(spill, "seen")),
        model.embed(few, activations_folder(spill, "base")),
    )
    lanes: dict[str, list[Batch]] = {}  # by unit: the hidden states of `few` where that unit alone is quantized
    losses: dict[str, list[float]] = {}
    for index in range(len(model)):
        block, prefix = model.block(index), model.family.block.format(i=index) + "."
        for lane in lanes.values():
            model.forward_block(index, lane)
        own = [unit for unit in units if unit.linears[0].name.startswith(prefix)]
        for input_group in model.family.input_groups:
            here = [unit for unit in own if unit.linears[0].name.removeprefix(prefix) in input_group.linears]
            hessian = second_moments(model, index, seen, input_group) if here else None
            for unit in here:
                assert hessian is not None
                linears = [cast(nn.Linear, block.get_submodule(one.name.removeprefix(prefix))) for one in unit.linears]
                losses[unit.name], after = _losses(linears, hessian, unit, step)
                lanes[unit.name] = sensitivity.reweighted(
                    model, index, base, linears, after, activations_folder(spill, unit.name)
                )
        model.forward_block(index, seen)
        model.forward_block(index, base)
        model.free(index)
        progress(f"allocation | block {index + 1:02d}/{len(model)} measured")
    expected = model.final_norm(base)
    return Measured(
        losses=[losses[unit.name] for unit in units],
        probes=[_probe(unit) for unit in units],
        kl=kl_divergence.divergences(model, expected, [model.final_norm(lanes[unit.name]) for unit in units]),
        tokens=few.numel(),
    )


def _probe(unit: Unit) -> int:
    """The option that a unit is tried with: the cheapest of enough bits."""
    return next((index for index, one in enumerate(unit.options) if one.bits >= PROBE_BITS), len(unit.options) - 1)


def _losses(
    linears: Sequence[nn.Linear], hessian: Tensor, unit: Unit, step: Quantization
) -> tuple[list[float], Tensor]:
    """The loss of every option, and the weight [outputs, inputs] of the one that is tried. Factors are shared."""
    weight = torch.cat([linear.weight for linear in linears]).float()
    prepared: dict[int, linear_algebra.Prepared] = {}
    found, tried = [], weight
    for number, scheme in enumerate(unit.options):
        own = {"bits": scheme.bits, "group_size": scheme.group_size, "symmetric": scheme.symmetric}
        settings = step.model_copy(update=own)
        if scheme.group_size not in prepared:
            prepared[scheme.group_size] = gptq.prepare(hessian, settings)
        made = gptq.compress(weight, hessian, settings, prepared[scheme.group_size])
        found.append(made.loss)
        if number == _probe(unit):
            tried = made.weight
    return found, tried
