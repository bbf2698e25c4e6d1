"""Bit allocation: spends a budget of bytes on the linears whose quantization costs most KL.

One pass over the base measures GPTQ's loss for every option of every unit on calibration tokens, and the KL of each
unit alone quantized with one option, on a few sequences. KL of the other options is taken to be in proportion to their
loss; the knapsack of plan/choices chooses (docs/maths.md, Allocation). Knows blocks and GPTQ. Knows no file format.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from hubplugin.compress.blocks.blockwise import activations_folder
from hubplugin.compress.search import sensitivity
from hubplugin.compress.search.measurements import Kept, Sensitivities, load_or_measure
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.methods import linear_algebra
from hubplugin.methods.gptq import gptq
from hubplugin.model.activations import Batch, copied
from hubplugin.model.block_runner import Model
from hubplugin.model.layer_inputs import second_moments
from hubplugin.plan.choices.mixed_precision import Budget, Unit
from hubplugin.plan.schemes import Scheme
from hubplugin.progress import progress
from hubplugin.report import AllocatedUnit, Allocation

FILE_NAME = "allocation.json"
PROBE_BITS = 3  # the fewest that KL is measured with: what 2 bits do to a model is not in proportion to the loss


def allocate(
    model: Model,
    tokens: Tensor,
    budget: Budget,
    step: GridQuantization,
    spill: Path | None = None,
    kept: Kept[Sensitivities] | None = None,
) -> Allocation:
    """The options of all units that fit the budget with the least predicted KL, for token ids [sequences, tokens].

    With `spill`, an empty folder, activations live there instead of in memory. What is measured is taken from `kept`,
    or kept there. Raises CompressError where activations are not finite.
    """
    kept = kept or Kept()
    measured = load_or_measure(kept, "allocation", partial(measure, model, tokens, budget.units, step, spill))
    return _record(budget, measured, budget.choose(measured.predicted_kl()))


def _record(budget: Budget, measured: Sensitivities, chosen: Sequence[int]) -> Allocation:
    kl = measured.predicted_kl()
    return Allocation(
        predicted_kl=sum(options[option] for options, option in zip(kl, chosen, strict=True)),
        tokens=measured.tokens,
        units=tuple(
            AllocatedUnit(
                name=unit.name,
                bits=unit.options[option].bits,
                group_size=unit.options[option].group_size,
                symmetric=unit.options[option].symmetric,
                bytes=unit.costs[option],
                loss=measured.losses[number][option],
                kl=kl[number][option],
            )
            for number, (unit, option) in enumerate(zip(budget.units, chosen, strict=True))
        ),
    )


def schemes(budget: Budget, record: Allocation) -> dict[str, Scheme]:
    """Every allocated linear's scheme, by its full path."""
    chosen = []
    for unit, allocated in zip(budget.units, record.units, strict=True):
        options = [(option.bits, option.group_size, option.symmetric) for option in unit.options]
        chosen.append(options.index((allocated.bits, allocated.group_size, allocated.symmetric)))
    return budget.schemes(chosen)


def measure(
    model: Model, tokens: Tensor, units: Sequence[Unit], step: GridQuantization, spill: Path | None = None
) -> Sensitivities:
    """One pass over the base with calibration token ids [sequences, tokens], in the model's dtype.

    Second moments come from the first MOMENT_TOKENS of them, in complete sequences, KL from beginnings of sequences.
    Raises CompressError where activations are not finite.
    """
    begun = time.monotonic()
    calibration, base = sensitivity.activations(model, tokens, spill)
    quantized: dict[str, list[Batch]] = {}  # by unit: activations of the probe where that unit alone is quantized
    losses: dict[str, list[float]] = {}
    for index in range(len(model)):
        block, prefix = model.block(index), model.family.block.format(i=index) + "."
        for batches in quantized.values():
            model.forward_block(index, batches)
        of_block = [unit for unit in units if unit.linears[0].name.startswith(prefix)]
        for input_group in model.family.input_groups:
            of_group = [unit for unit in of_block if unit.linears[0].name.removeprefix(prefix) in input_group.linears]
            if not of_group:
                continue
            hessian = second_moments(model, index, calibration, input_group)
            for unit in of_group:
                linears = [cast(nn.Linear, block.get_submodule(one.name.removeprefix(prefix))) for one in unit.linears]
                losses[unit.name], weight = _losses(linears, hessian, unit, step)
                batches = copied(base, activations_folder(spill, unit.name))
                quantized[unit.name] = sensitivity.forward_reweighted(model, index, batches, linears, weight)
        model.forward_block(index, calibration)
        model.forward_block(index, base)
        model.free(index)
        progress(f"allocation | block {index + 1:02d}/{len(model)} measured")
    return Sensitivities(
        losses=tuple(tuple(losses[unit.name]) for unit in units),
        probed=tuple(_probed(unit) for unit in units),
        kl=tuple(sensitivity.divergences(model, base, [quantized[unit.name] for unit in units])),
        tokens=sensitivity.probe(tokens).numel(),
        seconds=round(time.monotonic() - begun, 2),
    )


def _probed(unit: Unit) -> int:
    """The option that a unit's KL is measured with: the cheapest of at least PROBE_BITS."""
    enough = (number for number, option in enumerate(unit.options) if option.bits >= PROBE_BITS)
    return next(enough, len(unit.options) - 1)


def _losses(
    linears: Sequence[nn.Linear], hessian: Tensor, unit: Unit, step: GridQuantization
) -> tuple[list[float], Tensor]:
    """The loss of every option, and the weight [outputs, inputs] of the one that is probed. Factors are shared."""
    weight = torch.cat([linear.weight for linear in linears]).float()
    prepared: dict[int, linear_algebra.Prepared] = {}
    losses, probed = [], weight
    for number, scheme in enumerate(unit.options):
        options = {"bits": scheme.bits, "group_size": scheme.group_size, "symmetric": scheme.symmetric}
        settings = step.model_copy(update=options)
        if scheme.group_size not in prepared:
            prepared[scheme.group_size] = gptq.prepare(hessian, settings)
        compressed = gptq.compress(weight, hessian, settings, prepared[scheme.group_size])
        losses.append(compressed.loss)
        if number == _probed(unit):
            probed = compressed.weight
    return losses, probed
