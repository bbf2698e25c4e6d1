"""What a step that sets weights to zero may be given, and what plan, report and card say of the result.

Knows settings and shapes; not how weights are chosen (a method's solver does) and no torch.
"""

from collections.abc import Sequence

from hubplugin.errors import PlanError
from hubplugin.manifest.methods import row_of
from hubplugin.manifest.steps.masks import Masking
from hubplugin.plan import schemes
from hubplugin.plan.schemes import LinearPlan


def label(step: Masking) -> str:
    """What becomes of the weights, in few words."""
    return f"{step.pattern} zeros" if step.pattern else f"{100 * step.ratio:g} % zeros"


def notes(step: Masking | None) -> tuple[str, ...]:
    """The note of the method's row with the numbers of the step; empty where the row has none."""
    if step is None or not (note := row_of(step).note):
        return ()
    zeros = f"{step.kept[1] - step.kept[0]} of every {step.kept[1]}" if step.kept else f"{100 * step.ratio:g} % of the"
    where = f" in all linears but {', '.join(step.ignore)}" if step.ignore else ""
    return (f"{note}: {zeros} weights are zero{where}, and zeros are stored and multiplied like any other number",)


def check(step: Masking, linears: Sequence[LinearPlan], where: str) -> None:
    """`ignore`, `pattern` and `sparsity` against every linear of the blocks, in the shapes that pruning leaves."""
    names = set(schemes.not_ignored(step, [linear.name for linear in linears], where, "set to zero"))
    masked = [linear for linear in linears if linear.name in names]
    for linear in masked:
        _check_linear(step, linear, masked, where)


def _check_linear(step: Masking, linear: LinearPlan, masked: Sequence[LinearPlan], where: str) -> None:
    """Rows hold whole groups of a pattern, and a sparsity is some of a row's weights, but not all."""
    inputs = linear.after[1]
    if step.kept and inputs % step.kept[1]:
        dividing = [size for size in (4, 8, 16, 32) if not any(other.after[1] % size for other in masked)]
        other = f"another pattern, such as {dividing[0] // 2}:{dividing[0]}" if dividing else "sparsity"
        raise PlanError(
            f"{where}.pattern",
            f"groups of {step.kept[1]} do not divide {linear.short}'s {inputs} inputs",
            f"leave it whole with ignore: [{linear.short}], or use {other}",
        )
    if not 0 < round(step.ratio * inputs) < inputs:
        raise PlanError(
            f"{where}.sparsity",
            f"{step.ratio:g} of {linear.short}'s {inputs} inputs rounds to {round(step.ratio * inputs)} of them",
            f"use {1 / inputs:.2g} to {1 - 1 / inputs:.2g}, or leave it whole with ignore: [{linear.short}]",
        )
