"""Spends a budget: measures what each option of each unit loses and what a unit's loss does to the model's predictions,
then lets the knapsack choose.

One pass over the base, one block in memory. Losses are GPTQ's own, tr((W-W')H(W-W')^T), on calibration tokens; their
weight is a measured KL: some sequences run through the model once for every unit with that unit alone quantized
(docs/maths.md, Allocation). Knows no file format; what it found is a record of the report.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from hubplugin import evaluate
from hubplugin.budget import Unit
from hubplugin.errors import CompressError
from hubplugin.hessian import Moment
from hubplugin.manifest import Gptq
from hubplugin.methods import gptq
from hubplugin.stream import Batch, Model

PROBE_TOKENS = 8192  # that run once for every unit: whole calibration sequences, at least one
MOMENT_TOKENS = 131072  # that second moments are summed over


@dataclass(frozen=True)
class Measured:
    """What every option of every unit loses, and what one of them does to the model."""

    losses: list[list[float]]  # tr((W-W')H(W-W')^T) / tr(W H W^T), by unit and option
    probes: list[int]  # the option of each unit that was tried alone
    kl: list[float]  # nats per token, KL(base || base with that one unit quantized)

    def predicted(self) -> list[list[float]]:
        """KL by unit and option: in proportion to the loss, through the measured point."""
        return [
            [kl * loss / own[probe] if own[probe] > 0 else 0.0 for loss in own]
            for own, probe, kl in zip(self.losses, self.probes, self.kl, strict=True)
        ]


def measure(model: Model, tokens: Tensor, units: Sequence[Unit], step: Gptq, probe=None) -> Measured:
    """One pass over the base with calibration tokens [sequences, tokens]; computes in the model's dtype."""
    some = tokens[: max(1, MOMENT_TOKENS // tokens.shape[1])]
    few = tokens[: max(1, PROBE_TOKENS // tokens.shape[1])]
    seen, base = model.start(some), model.start(few)
    lanes: list[list[Batch]] = []
    losses, probes = [], []
    for index in range(len(model)):
        block, prefix = model.block(index), model.family.block.format(i=index) + "."
        own = [unit for unit in units if unit.linears[0].name.startswith(prefix)]
        tried: dict[str, Tensor] = {}
        for tap in model.family.taps:
            here = [unit for unit in own if unit.linears[0].name.removeprefix(prefix) in tap.linears]
            if not here:
                continue
            hessian = _moments(model, index, seen, tap)
            for unit in here:
                linears = [block.get_submodule(linear.name.removeprefix(prefix)) for linear in unit.linears]
                weight = torch.cat([linear.weight for linear in linears]).float()
                number = probe(unit)
                found, after = _losses(weight, hessian, unit, step, number)
                losses.append(found), probes.append(number)
                tried[unit.name] = after
        for lane in lanes:
            model.advance(index, lane)
        for unit in own:
            lanes.append(_alone(model, index, base, unit, tried[unit.name]))
        model.advance(index, seen)
        model.advance(index, base)
        model.free(index)
    reference = model.finish(base)
    return Measured(losses, probes, [_kl(model, reference, model.finish(lane)) for lane in lanes])


def _moments(model, index, batches, tap):
    moment = Moment()
    for inputs in model.visit(index, batches, tap):
        moment.add(inputs)
    return moment.matrix(f"{model.family.block.format(i=index)}.{tap.linears[0]}")


def _losses(weight, hessian, unit, step, probe):
    ready, found, after = {}, [], weight
    for number, scheme in enumerate(unit.options):
        own = step.model_copy(update={"bits": scheme.bits, "group_size": scheme.group_size, "symmetric": scheme.symmetric})
        if own.group_size not in ready:
            ready[own.group_size] = gptq.prepare(hessian, own)
        done = gptq.compress(weight, hessian, own, ready[own.group_size])
        found.append(done.loss)
        if number == probe:
            after = done.weight
    return found, after


def _alone(model, index, base, unit, weight):
    block, prefix = model.block(index), model.family.block.format(i=index) + "."
    lane = []
    for batch in base:
        lane.append(Batch(batch.keywords)); lane[-1].put("hidden", batch.hidden)
    rows = 0
    for linear in unit.linears:
        module = block.get_submodule(linear.name.removeprefix(prefix))
        part = weight[rows : (rows := rows + linear.after[0])]
        module.weight = nn.Parameter(part.to(module.weight.dtype), requires_grad=False)
    model.advance(index, lane)
    model.block(index)
    return lane


def _kl(model, reference, hidden):
    flat, base = hidden.reshape(-1, hidden.shape[-1]), reference.reshape(-1, hidden.shape[-1])
    count = max(1, evaluate.LOGITS // model.vocabulary)
    total = [evaluate.divergence(model.logits(b), model.logits(h)) for b, h in zip(base.split(count), flat.split(count))]
    return float(torch.cat(total).mean())
