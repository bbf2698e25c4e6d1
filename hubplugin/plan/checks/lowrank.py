"""What a step that stores factors may be given, and what plan, report and card say of the result.

Knows settings and shapes; chooses no rank (choices/ranks.py) and reads no weights.
"""

from collections.abc import Sequence

from hubplugin.checkpoint.format_names import GPTQ, PACK_QUANTIZED, STACKS
from hubplugin.errors import PlanError
from hubplugin.manifest.methods import factorization_of, quantization_of
from hubplugin.manifest.schema import Step
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.plan import schemes, vllm_support
from hubplugin.plan.schemes import LinearPlan, Scheme

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
    left = "whole" if any(linear.scheme for linear in linears) else "dense"
    return f"{step.layout} rank {span}{f', {dense} {left}' if dense else ''}"


def notes(step: LowRank | None) -> tuple[str, ...]:
    """What a user must know of the layout."""
    if step is None:
        return ()
    return (PLUGIN if step.layout == "factored" else MERGED,)


def check(step: LowRank, linears: Sequence[LinearPlan], where: str) -> None:
    """`ignore` against every linear of the blocks, and kinds of linears that are no factors, or never beside some."""
    if coded := next((linear for linear in linears if linear.experts and linear.scheme), None):
        what = f"{coded.name} is an expert's: our plugin for vLLM loads codes of experts not beside factors"
        raise PlanError(where, what, 'leave experts dense in the gptq step with ignore: ["*.experts.*"]')
    names = set(schemes.not_ignored(step, [linear.name for linear in linears], where, "factor"))
    for linear in (linear for linear in linears if linear.name in names):
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


# settings of a gptq step that hold for whole weights alone, and what they are where they are left out
WHOLE_ALONE: dict[str, object] = {
    "overrides": {},
    "budget": None,
    "lm_head": False,
    "activation_bits": None,
    "engine": "hubplugin",
}


def check_codes(steps: Sequence[Step], where: str) -> None:
    """Raise PlanError where the factors of a variant cannot be quantized as its steps say."""
    step, quantizing = factorization_of(steps), quantization_of(steps)
    if step is None or quantizing is None:
        return
    place, alone = f"{where}[{steps.index(quantizing)}]", "or make a variant of each step"
    if step.layout == "merged":
        what = "codes of a product of factors are codes of a whole weight, of full rank again"
        raise PlanError(f"{where}[{steps.index(step)}].layout", what, f"use layout: factored, {alone}")
    if not isinstance(quantizing, GridQuantization):
        what = f"no format and no kernel here has {quantizing.method}s of factors"
        raise PlanError(f"{place}.method", what, f"use gptq, {alone}")
    for key, usual in WHOLE_ALONE.items():
        if getattr(quantizing, key) != usual:
            raise PlanError(
                f"{place}.{key}", "is for whole weights, and factors are quantized too", f"remove it, {alone}"
            )
    if quantizing.format == GPTQ:
        what = "our plugin for vLLM reads codes of factors in compressed-tensors' format"
        raise PlanError(f"{place}.format", what, "use compressed-tensors, or leave it out")
    _check_ranks(step, quantizing, place)


def _check_ranks(step: LowRank, quantizing: GridQuantization, place: str) -> None:
    """B's inputs are ranks: they hold whole groups, and whole words of codes."""
    scheme = Scheme(quantizing.bits, quantizing.group_size, quantizing.symmetric, None, PACK_QUANTIZED)
    words, group = vllm_support.whole_words(scheme), max(quantizing.group_size, 1)
    if step.rank_multiple % group:
        fits = [str(size) for size in (64, 32) if size < group and step.rank_multiple % size == 0]
        raise PlanError(
            f"{place}.group_size",
            f"{group} does not divide ranks, which are multiples of {step.rank_multiple}: a factor has as many inputs",
            f"use {' or '.join([*fits, '-1'])}, or rank_multiple: {group} in the lowrank step",
        )
    if step.rank_multiple % words:
        raise PlanError(
            f"{place}.bits",
            f"ranks are multiples of {step.rank_multiple}, and it takes {words} codes to fill whole 32-bit words",
            f"use rank_multiple: {words} in the lowrank step, or other bits",
        )
