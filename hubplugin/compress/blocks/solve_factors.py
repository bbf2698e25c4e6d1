"""What becomes of the linears of one input group where a step makes factors: two of them, or a refit whole; and codes.

Pure functions from weights and statistics of their inputs to new weights (docs/maths.md, Low rank). Knows the methods;
no module, no model and no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import Coded, CodedFactors
from hubplugin.checkpoint.encodings import LowRank as LowRankFactors
from hubplugin.compress.blocks import solve
from hubplugin.compress.blocks.solve import StepResult
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.methods import coded_factors, qep
from hubplugin.methods.base import solver_of
from hubplugin.methods.linear_algebra import Prepared
from hubplugin.model.layer_inputs import GroupStatistics
from hubplugin.plan.schemes import Factors


@dataclass(frozen=True)
class FactorSteps:
    """What is asked of linears that become factors or stay whole."""

    lowrank: LowRank
    quantization: GridQuantization | None  # of factors and of what stays whole; None: all are floats
    stored: torch.dtype  # of floats in the checkpoint


@dataclass(frozen=True)
class Solved:
    """A linear, or a stack of linears with a common A."""

    weight: Tensor  # [outputs, inputs], as it is stored: of factors and codes in float32
    encoding: LowRankFactors | CodedFactors | Coded | None  # None: it is stored dense
    results: tuple[StepResult, ...] = ()


def factor(
    weights: Sequence[Tensor], statistics: GroupStatistics, steps: FactorSteps, ranks: Sequence[Factors | None]
) -> tuple[tuple[Solved, ...], bool]:
    """Factor weights float32 [outputs, inputs] that read one input, as their `ranks` say; None: it stays whole.

    Also whether they have a common A: results then stand in the first and are those of the stack. Targets are corrected
    where a correction is known, also those of linears that stay whole.
    """
    solver, step = solver_of(steps.lowrank), steps.lowrank
    target, whitening, applied = solve.aimed(
        torch.cat(tuple(weights)), statistics, lambda moments: solver.prepare(moments, step)
    )
    columns = None
    if steps.quantization:
        columns = solver_of(steps.quantization).prepare(statistics.second_moments, steps.quantization)
    group = _Group(statistics.second_moments, whitening, columns, applied, steps)
    sizes = [len(weight) for weight in weights]
    if ranks[0] and ranks[0].shared:
        stack = group.factored(target, ranks[0].rank)
        assert isinstance(stack.encoding, LowRankFactors | CodedFactors)
        ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
        parts = [stack.encoding.rows(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
        made = [Solved(part.dense(), part) for part in parts]
        return (Solved(made[0].weight, made[0].encoding, stack.results), *made[1:]), True
    triples = zip(target.split(sizes), weights, ranks, strict=True)
    return tuple(group.factored(part, own.rank) if own else group.whole(part, old) for part, old, own in triples), False


@dataclass(frozen=True)
class _Group:
    """What all linears of an input group share."""

    second_moments: Tensor
    whitening: Prepared
    columns: Prepared | None  # of the quantizer
    applied: float | None  # share of the target's correction
    steps: FactorSteps

    def factored(self, target: Tensor, rank: int) -> Solved:
        """Two factors in place of a weight, of floats or codes."""
        step, quantization = self.steps.lowrank, self.steps.quantization
        stored = self.steps.stored if quantization is None else torch.float32
        made = solver_of(step).compress(target, self.second_moments, step, self.whitening, rank=rank, stored=stored)
        assert isinstance(made.encoding, LowRankFactors)
        factored = solve.step_result(step.method, made, self.applied)
        if quantization is None:
            return Solved(made.weight, made.encoding, (factored,))
        coded = coded_factors.compress(target, made.encoding, quantization, self.whitening, self.columns)
        assert isinstance(coded.encoding, CodedFactors)
        return Solved(coded.weight, coded.encoding, (factored, solve.step_result(quantization.method, coded)))

    def whole(self, target: Tensor, before: Tensor) -> Solved:
        """A weight that gets codes, or stays dense and is fitted to the base's outputs; `before` as the base has it."""
        quantization = self.steps.quantization
        if quantization is None:
            results = () if self.applied is None else (solve.refit_result(self.whitening, self.applied),)
            return Solved(qep.stored(target, before, self.second_moments, self.steps.stored), None, results)
        made = solver_of(quantization).compress(target, self.second_moments, quantization, self.columns)
        assert isinstance(made.encoding, Coded)
        return Solved(made.weight, made.encoding, (solve.step_result(quantization.method, made, self.applied),))
