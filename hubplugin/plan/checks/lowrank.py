"""What a step that stores factors may be given, and what plan, report and card say of the result.

Knows settings and shapes; chooses no rank (choices/ranks.py) and reads no weights.
"""

from collections.abc import Sequence

from hubplugin.checkpoint.format_names import STACKS
from hubplugin.errors import PlanError
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.plan import schemes
from hubplugin.plan.schemes import LinearPlan

PLUGIN = (
    "vLLM serves it with hubplugin installed beside it: some linears are two factors, and a plugin of ours multiplies "
    "by both (no remote code; run on a CPU, not tried on a GPU). Stock vLLM refuses it. Do not load it with "
    "transformers, which only warns of an unknown quantization type and fills these linears with random numbers: "
    "layout: merged in the manifest writes the product of the factors, which both load"
)
MERGED = "Factors are stored as their product: quality is that of factors, size and speed are the base's"


def label(step: LowRank, linears: Sequence[LinearPlan]) -> str:
    """What becomes of the linears, in few words."""
    ranks = [linear.factors.rank for linear in linears if linear.factors]
    dense = len(linears) - len(ranks)
    span = f"{min(ranks)} to {max(ranks)}" if ranks and min(ranks) < max(ranks) else f"{ranks[0] if ranks else 0}"
    return f"{step.layout} rank {span}{f', {dense} dense' if dense else ''}"


def notes(step: LowRank | None) -> tuple[str, ...]:
    """What a user must know of the layout."""
    if step is None:
        return ()
    return (PLUGIN if step.layout == "factored" else MERGED,)


def check(step: LowRank, linears: Sequence[LinearPlan], where: str) -> None:
    """`ignore` against every linear of the blocks, and the kinds of linears that become factors."""
    for linear in schemes.not_ignored(step, linears, where, "factor"):
        if linear.experts:
            raise PlanError(
                where,
                f"{linear.name} is an expert's: vLLM runs all experts of a block as one matrix, not as factors",
                'leave them whole with ignore: ["*.experts.*"], or use a model without experts',
            )
        if linear.short in STACKS.values() and step.layout == "factored":
            raise PlanError(
                f"{where}.layout",
                f"{linear.short} of this family is one matrix, which our plugin for vLLM does not split into factors",
                "use layout: merged, or a llama, mistral, qwen2 or qwen3, whose q, k, v, gate and up stand apart",
            )
