"""What becomes of the linears of one input group: pruned, corrected, quantized, masked or refit dense.

Pure functions from weights and statistics of their inputs to new weights (docs/maths.md). Knows the methods; no module,
no model, no plan and no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import Coded, Columns
from hubplugin.manifest.steps.adapter import Eora
from hubplugin.manifest.steps.masks import Masking
from hubplugin.manifest.steps.prune import Prune
from hubplugin.manifest.steps.quantization import Quantization
from hubplugin.methods import eora, linear_algebra, obs, qep
from hubplugin.methods.base import Compressed, solver_of
from hubplugin.methods.linear_algebra import Prepared
from hubplugin.methods.qep import TargetCorrection
from hubplugin.model.layer_inputs import GroupStatistics


@dataclass(frozen=True)
class GroupSteps:
    """What is asked of linears that read the same input, and the precisions their weights go back into."""

    prune: Prune | None  # the variant's pruning step
    cuts: tuple[obs.Cut, ...]  # of that step, what this group's input columns lose; empty: all columns stay
    quantization: Quantization | None  # None: the weights stay dense
    computing: torch.dtype  # that the model computes in
    stored: torch.dtype  # of dense weights and biases in the checkpoint

    @property
    def changes_weights(self) -> bool:
        """Whether any step but a mask applies."""
        return bool(self.quantization or self.cuts or (self.prune and self.prune.refit))

    @property
    def corrects_targets(self) -> bool:
        """Whether the weights are fitted to the base's outputs."""
        return self.quantization.qep if self.quantization else self.prune is not None and self.prune.refit

    @property
    def fits_biases(self) -> bool:
        """Whether biases make up for the mean error of the outputs."""
        return self.prune is not None and self.prune.bias


@dataclass(frozen=True)
class StepResult:
    """What the report says of one step on one group; see `report.LinearResult`."""

    method: str
    loss: float | None
    damp: float
    fallback: str | None
    dead_inputs: int
    correction: float | None = None  # share of the target correction that was applied; None: there was none


@dataclass(frozen=True)
class GroupResult:
    """The new weights of a group's linears, stacked by rows."""

    weight: Tensor  # [outputs, kept inputs], as it is stored: of codes the dequantized float32 weight
    results: tuple[StepResult, ...]
    coded: Coded | None = None  # the codes behind `weight`; None: it is stored dense
    kept: Tensor | None = None  # int64, the input columns that stay; None: all
    bias_change: Tensor | None = None  # float32 [outputs], to add to the biases; None: they stay


def solve_group(weight: Tensor, statistics: GroupStatistics, steps: GroupSteps) -> GroupResult:
    """Prune, correct and quantize or refit weight float32 [outputs, inputs], as far as each is asked for.

    All outputs share the second moments of their input, so one factor serves all rows. Raises CompressError where
    second moments stay singular under the damping.
    """
    before, kept, results = weight, None, []
    if steps.cuts:
        assert steps.prune
        pruned = obs.compress(weight, statistics.second_moments, steps.prune, steps.cuts)
        assert isinstance(pruned.encoding, Columns)
        kept = pruned.encoding.keep
        weight, before, statistics = pruned.weight, weight[:, kept], statistics.on_columns(kept)
        results.append(step_result("prune", pruned))
    if steps.quantization:
        solved = quantize(weight, statistics, steps.quantization)
    else:
        solved = _refit(weight, before, statistics, steps)
    bias_change = None
    if statistics.corrections and steps.fits_biases:
        visible = solved.weight.to(steps.computing).contiguous()  # what the model computes with from now on
        bias_change = _mean_error(visible, statistics.corrections, kept)
    return GroupResult(solved.weight, (*results, *solved.results), solved.coded, kept, bias_change)


def quantize(weight: Tensor, statistics: GroupStatistics, step: Quantization) -> GroupResult:
    """Quantize weight [outputs, inputs], its target corrected where a correction is known."""
    solver = solver_of(step)
    target, prepared, applied = aimed(weight, statistics, lambda moments: solver.prepare(moments, step))
    known = {"outputs": statistics.outputs} if statistics.outputs else {}
    compressed = solver.compress(target, statistics.second_moments, step, prepared, **known)
    assert isinstance(compressed.encoding, Coded)
    result = step_result(step.method, compressed, applied, statistics.cold)
    return GroupResult(compressed.weight, (result,), compressed.encoding)


def aimed(
    weight: Tensor, statistics: GroupStatistics, prepare: Callable[[Tensor], Prepared]
) -> tuple[Tensor, Prepared, float | None]:
    """What stands in place of weight [outputs, inputs] as the target, corrected where a correction is known.

    Also what `prepare` makes of the second moments of all tokens, and the share of the correction; None: there is none.
    """
    prepared = prepare(statistics.matched)
    if not statistics.corrections:
        return weight, prepared, None
    target, applied = qep.corrected(weight, prepared, *statistics.corrections)
    if statistics.matched is not statistics.second_moments:
        prepared = prepare(statistics.second_moments)
    return target, prepared, applied


def _refit(weight: Tensor, before: Tensor, statistics: GroupStatistics, steps: GroupSteps) -> GroupResult:
    """Fit weight [outputs, inputs] to the base's outputs where a correction is known; rounded as it will be stored.

    `before` is the weight as the base has it: a row keeps it where rounding would cost more than the fit gains.
    """
    results: tuple[StepResult, ...] = ()
    if statistics.corrections and steps.prune:
        prepared = linear_algebra.prepare(statistics.second_moments, steps.prune.damp)
        weight, applied = qep.corrected(weight, prepared, *statistics.corrections)
        results = (refit_result(prepared, applied),)
    rounded = qep.stored(weight, before, statistics.second_moments, steps.stored)
    return GroupResult(rounded.to(steps.stored), results)


def _mean_error(weight: Tensor, corrections: Sequence[TargetCorrection], kept: Tensor | None) -> Tensor:
    """What the outputs of weight [outputs, kept inputs] lack on average over tokens, [outputs]."""
    errors = [correction.on_average(weight, kept) for correction in corrections if correction.tokens]
    return sum(errors[1:], errors[0]) / sum(correction.mass for correction in corrections)


def solve_mask(weight: Tensor, statistics: GroupStatistics, step: Masking, prepared: Any) -> GroupResult:
    """Set entries of weight float32 [outputs, inputs] to zero; `prepared` is what the solver made for the group."""
    compressed = solver_of(step).compress(weight, statistics.second_moments, step, prepared)
    result = step_result(step.method, compressed, cold=statistics.cold)
    return GroupResult(compressed.weight, (result,))


def correct(
    wanted: Sequence[Tensor], held: Sequence[Tensor], statistics: GroupStatistics, step: Eora, stored: torch.dtype
) -> list[tuple[Compressed, StepResult]]:
    """Factors that bring the weights a variant holds nearer to those of the base, linear by linear, each float32
    [outputs, inputs] and all reading one input; targets are corrected where a correction is known."""
    target, prepared, applied = aimed(torch.cat(tuple(wanted)), statistics, lambda moments: eora.prepare(moments, step))
    solved = []
    for part, before in zip(target.split([len(weight) for weight in wanted]), held, strict=True):
        made = eora.compress(part, statistics.second_moments, step, prepared, compressed=before, stored=stored)
        solved.append((made, step_result(step.method, made, applied)))
    return solved


def step_result(
    method: str, compressed: Compressed, correction: float | None = None, cold: str | None = None
) -> StepResult:
    """The record of a method's work; `cold` says what stood in for the tokens that an expert did not see."""
    return StepResult(
        method=method,
        loss=compressed.loss,
        damp=compressed.damp,
        fallback="; ".join(filter(None, (cold, compressed.fallback))) or None,
        dead_inputs=compressed.dead_inputs,
        correction=correction,
    )


def refit_result(prepared: Prepared, correction: float) -> StepResult:
    """The record of a refit to the base's outputs."""
    return StepResult(
        method="refit",
        loss=None,
        damp=prepared.factor.damp,
        fallback=prepared.factor.fallback,
        dead_inputs=int(prepared.dead.sum()),
        correction=correction,
    )
