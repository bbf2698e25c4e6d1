"""What a tune step and the steps before it, or its text, cannot do together: each contradiction a PlanError.

Knows settings of steps and schemes of linears; no weights and no training.
"""

from collections.abc import Sequence

from hubplugin.checkpoint.format_names import GPTQ, INT_QUANTIZED, PACK_QUANTIZED
from hubplugin.errors import PlanError
from hubplugin.manifest.methods import Kind, grid_of, pruning_of, step_of, tuning_of
from hubplugin.manifest.schema import Manifest, Step
from hubplugin.manifest.steps.training.tune import Tune
from hubplugin.plan.schemes import LinearPlan

GRIDS = (GPTQ, PACK_QUANTIZED, INT_QUANTIZED)  # layouts of scale * (code - zero)
LEAST = 2  # sequences: one to train on, one to hold out


def check(step: Tune, linears: Sequence[LinearPlan], where: str) -> None:
    """Every quantized linear lies on a grid, and its inputs stay as they are."""
    for linear in linears:
        if linear.scheme is None:
            continue
        if linear.scheme.layout not in GRIDS:
            raise PlanError(
                f"{where}.method",
                f"{linear.short} is stored as {linear.scheme.layout}, and tune trains scales of a uniform grid",
                "put it after a gptq step, or remove it",
            )
        if not linear.scheme.weight_only:
            raise PlanError(
                f"{where}.method",
                f"{linear.short}'s inputs are rounded to int8 at run time, which training does not see",
                "remove activation_bits from the gptq step, or remove this step",
            )


def check_variant(steps: Sequence[Step], manifest: Manifest, where: str) -> None:
    """A variant's tune step against its other steps and against the text that it learns from."""
    step, quantizing = tuning_of(steps), grid_of(steps)
    if step is None or quantizing is None:
        return
    place = f"{where}[{list(steps).index(step)}]"
    if quantizing.engine != "hubplugin":
        raise PlanError(
            f"{place}.method",
            f"{quantizing.engine}'s scales are float16 alone, and tune stores what bfloat16 holds too",
            f"remove engine: {quantizing.engine} from the {quantizing.method} step, or remove this step",
        )
    if step.rounding and pruning_of(steps) and step_of(steps, Kind.RECOVER) is None:
        raise PlanError(
            f"{place}.rounding",
            "pruning and codes share a pass, which leaves no dense weights to round again",
            "put a recover step between them, or leave rounding out",
        )
    source = step.data or manifest.calibrate
    if source.samples < LEAST:
        raise PlanError(
            f"{place}.data",
            f"{source.samples} sequence to learn from leaves none to hold out",
            f"use samples: {LEAST} or more here or in calibrate; hundreds are better",
        )
