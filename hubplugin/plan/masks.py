"""What a step that sets weights to zero may be given, and what a user must be told of the result.

The sentence on speed and size stands here once; plan, report and card repeat it. Settings and shapes alone: no torch,
and no knowledge of how weights are chosen (methods/wanda.py, methods/sparsegpt.py).
"""

from collections.abc import Sequence
from itertools import pairwise

from hubplugin.errors import PlanError
from hubplugin.manifest.masks import Masking
from hubplugin.manifest.methods import Kind, kind_of
from hubplugin.manifest.schema import Step
from hubplugin.plan import schemes
from hubplugin.plan.schemes import LinearPlan

# vLLM removed its sparse kernels and refuses a sparsity_config: zeros are numbers like any other to it
NOTE = "vLLM runs this at dense speed and size"


def label(step: Masking) -> str:
    """What becomes of the weights, in few words."""
    return f"{step.pattern} zeros" if step.pattern else f"{100 * step.share:g} % zeros"


def notes(step: Masking | None) -> tuple[str, ...]:
    """What sizes and shapes alone would not tell a user."""
    if step is None:
        return ()
    zeros = f"{step.kept[1] - step.kept[0]} of every {step.kept[1]}" if step.kept else f"{100 * step.share:g} % of the"
    where = f" in all linears but {', '.join(step.ignore)}" if step.ignore else ""
    return (f"{NOTE}: {zeros} weights are zero{where}, and zeros are stored and multiplied like any other number",)


def order(steps: Sequence[Step], where: str) -> None:
    """A mask may follow pruning; nothing follows a mask, and no mask follows codes."""
    for index, (step, later) in enumerate(pairwise(steps), start=1):
        kinds = kind_of(step), kind_of(later)
        if kinds == (Kind.MASK, Kind.PRUNE):
            raise PlanError(
                f"{where}[{index}].method",
                f"prune stands after {step.method}: its refit would fill the zeros again",
                "put it first",
            )
        if kinds[0] is Kind.MASK or kinds == (Kind.QUANTIZE, Kind.MASK):
            why = (
                "codes would fill the zeros again" if kinds[1] is Kind.QUANTIZE else "each would undo the other's work"
            )
            raise PlanError(
                f"{where}[{index}].method",
                f"{later.method} stands after {step.method}: {why}",
                "keep one of them, or make a variant of each",
            )


def check(step: Masking, linears: Sequence[LinearPlan], where: str) -> None:
    """The settings against every linear of the blocks, with the shapes it has once widths are pruned."""
    for pattern in step.ignore:
        if not any(schemes.matches(pattern, linear.name) for linear in linears):
            raise PlanError(
                f"{where}.ignore",
                f"{pattern!r} names no linear that this step sees",
                f"write a path's end or a pattern, such as {linears[0].short}, {linears[0].name}",
            )
    left = [linear for linear in linears if not schemes.is_ignored(step, linear.name)]
    if not left:
        raise PlanError(f"{where}.ignore", "no linear is left to set to zero", "ignore less, or remove the step")
    for linear in left:
        _fits(step, linear, left, where)


def _fits(step: Masking, linear: LinearPlan, linears: Sequence[LinearPlan], where: str) -> None:
    """Rows hold whole groups of a pattern, and a share of them is some weights, but not all."""
    inputs = linear.after[1]
    if step.kept and inputs % step.kept[1]:
        every = [size for size in (4, 8, 16, 32) if not any(one.after[1] % size for one in linears)]
        other = f"another pattern, such as {every[0] // 2}:{every[0]}" if every else "sparsity"
        raise PlanError(
            f"{where}.pattern",
            f"groups of {step.kept[1]} do not divide {linear.short}'s {inputs} inputs",
            f"leave it whole with ignore: [{linear.short}], or use {other}",
        )
    if not 0 < round(step.share * inputs) < inputs:
        raise PlanError(
            f"{where}.sparsity",
            f"{step.share:g} of {linear.short}'s {inputs} inputs rounds to {round(step.share * inputs)} of them",
            f"use {1 / inputs:.2g} to {1 - 1 / inputs:.2g}, or leave it whole with ignore: [{linear.short}]",
        )
