"""What a step that shares weights by codebooks may be given, and what plan, report and card say of the result.

Knows settings and shapes; not how centroids are chosen (a method's solver does) and no torch.
"""

from collections.abc import Sequence

from hubplugin.checkpoint.format_names import CODEBOOK
from hubplugin.errors import PlanError
from hubplugin.manifest.methods import row_of
from hubplugin.manifest.steps.codebook import Codebook
from hubplugin.manifest.steps.quantization import Quantization
from hubplugin.plan import vllm_support
from hubplugin.plan.checks import quantization
from hubplugin.plan.schemes import LinearPlan

CENTROID_BITS = 16
MOST_OVERHEAD = 1.0  # bits per weight of centroids: one more bit of gptq's grid quarters the error, no centroids do


def overhead(bits: int, inputs: int) -> float:
    """Bits per weight that a codebook of 2^bits centroids takes among so many inputs."""
    return CENTROID_BITS * float(2**bits) / inputs


def check(step: Codebook, linears: Sequence[LinearPlan], where: str) -> None:
    """Groups, stacks and what codebooks weigh against every linear of the variant. Raises PlanError."""
    for linear in (linear for linear in linears if linear.scheme):
        if linear.experts:
            raise PlanError(
                f"{where}.method", "codebooks of experts have no loader", "use gptq, or a model without experts"
            )
        inputs = linear.after[1]
        group = step.group(inputs)
        if inputs % group:
            raise PlanError(
                f"{where}.group_size" if step.values == "free" else f"{where}.values",
                f"{group} does not divide {linear.short}'s {inputs} inputs",
                f"use {'-1' if step.values == 'free' else 'free'}, or leave it dense with ignore: [{linear.short}]",
            )
        if step.values == "free":
            _check_weight(step, linear, group, where)
    quantization.fused(linears, where, "ignore")


def _check_weight(step: Codebook, linear: LinearPlan, group: int, where: str) -> None:
    """A codebook for too few weights takes more than one more bit of a grid would, or more than dense weights."""
    spent = overhead(step.bits, group)
    if spent <= MOST_OVERHEAD:
        return
    longer = "-1" if step.group_size != -1 and overhead(step.bits, linear.after[1]) <= MOST_OVERHEAD else ""
    fewer = [str(bits) for bits in (3, 2) if bits < step.bits and overhead(bits, group) <= MOST_OVERHEAD]
    fixes = [f"group_size: {longer}" if longer else "", f"bits: {' or '.join(fewer)}" if fewer else "", "gptq"]
    raise PlanError(
        f"{where}.group_size",
        f"{2**step.bits} centroids for {group} weights of {linear.short} take {spent:g} bits per weight beside the "
        f"{step.bits} of codes, more than one more bit of gptq's grid, which errs a quarter",
        "use " + ", or ".join(fix for fix in fixes if fix),
    )


def notes(step: Quantization | None, linears: Sequence[LinearPlan]) -> tuple[str, ...]:
    """Of free codebooks what they save and what serves them; empty for all other steps."""
    coded = [linear for linear in linears if linear.scheme and linear.scheme.layout == CODEBOOK]
    if step is None or not coded:
        return ()
    weights = sum(linear.after[0] * linear.after[1] for linear in coded)
    books = sum(linear.after[0] * (linear.after[1] // _group(linear)) for linear in coded)
    spent = CENTROID_BITS * 2**step.bits * books / weights
    return (f"{row_of(step).note}; of its bits per weight {spent:.2f} are centroids", vllm_support.CODEBOOK_PLUGIN)


def _group(linear: LinearPlan) -> int:
    group = linear.group_size
    return linear.after[1] if group is None or group == -1 else group
