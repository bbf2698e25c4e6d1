"""What a quantization step and a model cannot do together: each contradiction a PlanError.

Knows settings, schemes and the shapes of linears; decides no scheme (schemes.py) and reads no weights.
"""

from collections.abc import Mapping, Sequence

from hubplugin.checkpoint import format_names
from hubplugin.errors import PlanError
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.manifest.steps.prune import Prune
from hubplugin.manifest.steps.quantization import Quantization
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import FAMILIES, Family
from hubplugin.plan import schemes, sizes, vllm_support
from hubplugin.plan.schemes import LinearPlan, Scheme

GROUP_SIZES = (128, 64, 32)  # besides -1, a whole row


def check(step: Quantization, linears: Sequence[LinearPlan], where: str) -> None:
    """Words, groups and stacks against every linear of the variant, the head's among them if it is quantized."""
    packing(linears, where)
    fused(linears, where)


def engine(step: GridQuantization, prune: Prune | None, model_type: str, where: str) -> None:
    """What gptqmodel takes of a step, of a variant and of a model, where it is the engine."""
    if step.engine == "hubplugin":
        return
    fix = "or remove engine: gptqmodel"
    supported = [name for name, family in FAMILIES.items() if family.gptqmodel]
    for name in GridQuantization.model_fields:
        if name in step.model_fields_set and name not in GridQuantization.shared:
            raise PlanError(f"{where}.{name}", "gptqmodel has no such setting, our own engine has", f"remove it, {fix}")
    if prune:
        raise PlanError(
            f"{where}.engine",
            "gptqmodel quantizes whole models, and pruning here is done block by block in our own engine",
            f"prune in a variant of its own and name its folder as the `model:` of a second manifest, {fix}",
        )
    if model_type not in supported:
        raise PlanError(
            f"{where}.engine",
            f"models of type {model_type} are not among those that gptqmodel is known to return whole",
            f"use a model of type {', '.join(supported)}, {fix}",
        )
    if not step.symmetric:
        raise PlanError(f"{where}.symmetric", "zero points of gptqmodel's are not taken over", f"use true, {fix}")
    if step.format == format_names.COMPRESSED_TENSORS or step.bits not in schemes.GPTQ_BITS:
        raise PlanError(
            f"{where}.{'format' if step.format else 'bits'}",
            "gptqmodel's scales are float16, which AutoGPTQ's format alone keeps as they are, with 4 or 8 bits",
            f"use bits: 4 or 8 and no format, {fix}",
        )
    if step.damp == 1:
        raise PlanError(f"{where}.damp", "gptqmodel takes shares below 1", f"use 0.99 or less, {fix}")


def experts(step: GridQuantization, family: Family, where: str) -> None:
    """A budget is not for a model with experts."""
    if family.experts and step.budget is not None:
        raise PlanError(
            f"{where}.budget",
            "vLLM wants all experts of a block alike, and losses are not yet summed over them",
            "use bits and group_size instead",
        )


def budget(step: GridQuantization, prune: Prune | None, resolved: Mapping[str, Scheme | None], where: str) -> None:
    """What excludes a budget, which chooses bits, group sizes and symmetry itself."""
    if step.budget is None:
        return
    for key in ("bits", "group_size", "symmetric", "activation_bits"):
        if key in step.model_fields_set:
            raise PlanError(
                f"{where}.{key}",
                "a budget chooses it, linear by linear",
                "remove it, write it into the budget's options, or set it for some linears with overrides",
            )
    if prune:
        raise PlanError(
            f"{where}.budget",
            "losses are measured on the base's own linears, and pruning changes them",
            "prune in a variant of its own and name its folder as the `model:` of a second manifest",
        )
    rare = [option for option in step.budget.options if option.bits not in schemes.GPTQ_BITS or not option.symmetric]
    if rare and any(scheme and scheme.layout == format_names.GPTQ for scheme in resolved.values()):
        raise PlanError(
            f"{where}.budget.options",
            "of AutoGPTQ's format stock vLLM reads 4 and 8 bits and symmetric grids alone",
            "use format: compressed-tensors, or leave it out",
        )


def head(step: GridQuantization, family: Family, dims: Dimensions, where: str) -> None:
    """A quantized head is a matrix of its own."""
    if step.lm_head and dims.tied:
        raise PlanError(
            f"{where}.lm_head",
            f"this model's head is its embedding ({family.embed}), which stays as it is",
            "leave lm_head out, or use a model with tie_word_embeddings: false",
        )


def overrides(step: GridQuantization, names: Sequence[str], left: Sequence[str], where: str) -> None:
    """Every override names linears, and not only those that `ignore` or others have taken: `left` are not ignored."""
    schemes.check_named(step.overrides, names, f"{where}.overrides")
    effective = {schemes.override_of(step, name) for name in left}
    for pattern in step.overrides:
        if pattern not in effective:
            raise PlanError(
                f"{where}.overrides",
                f"{pattern!r} names only linears that are ignored or that an earlier pattern names",
                "put it before the wider pattern, or remove it",
            )


def grids(step: GridQuantization, resolved: Mapping[str, Scheme | None], where: str) -> None:
    """Settings that exclude one another, wherever the step or one of its overrides brings them together."""
    for name, scheme in resolved.items():
        if scheme is None or scheme.weight_only:
            continue
        pattern = schemes.override_of(step, name)
        place = f"{where}.overrides.{pattern}" if pattern else where
        if step.format == format_names.GPTQ:
            raise PlanError(
                f"{where}.format",
                f"AutoGPTQ's format knows no {scheme.activation_bits}-bit activations",
                "use format: compressed-tensors, or leave it out",
            )
        if (scheme.bits, scheme.group_size, scheme.symmetric) != (8, -1, True):
            raise PlanError(
                f"{place}.activation_bits",
                "8-bit activations are multiplied by int8 weights with one scale per output",
                "add bits: 8, group_size: -1, and symmetric: true",
            )


def fused(linears: Sequence[LinearPlan], where: str, lists: str = "ignore and overrides") -> None:
    """Linears that vLLM stacks into one matrix have one scheme, or are all dense; `lists` may make them differ."""
    for members in vllm_support.fused(linears):
        if len({linear.scheme for linear in members}) > 1:
            differing = ", ".join(dict.fromkeys(f"{linear.short} {linear.scheme or 'dense'}" for linear in members))
            parent = members[0].experts or members[0].name.rsplit(".", 1)[0]
            shorts = ", ".join(dict.fromkeys(linear.short for linear in members))
            shorts += " of every expert" if members[0].experts else ""
            raise PlanError(
                where,
                f"vLLM stacks these linears of {parent} into one, and they differ: {differing}",
                f"let {lists} name all of {shorts}, or none",
            )


def packing(linears: Sequence[LinearPlan], where: str) -> None:
    """Word size and group size against every linear."""
    for linear in linears:
        scheme = linear.scheme
        if scheme is None:
            continue
        outputs, inputs = linear.after
        codes = vllm_support.whole_words(scheme)
        zeros = scheme.layout == format_names.GPTQ or not scheme.symmetric  # they are packed along outputs
        for count, side in ((inputs, "inputs"), *([(outputs, "outputs")] if zeros else [])):
            if count % codes:
                raise PlanError(
                    f"{where}.bits",
                    f"{linear.short}'s {count} {side} do not fill whole 32-bit words of {codes} codes",
                    f"leave it dense with ignore: [{linear.short}], or use other bits",
                )
        if scheme.group_size > 0 and inputs % scheme.group_size:
            raise PlanError(
                f"{where}.group_size",
                f"{scheme.group_size} does not divide {linear.short}'s {inputs} inputs",
                _other_groups(scheme.group_size, linears),
            )


def _other_groups(group: int, linears: Sequence[LinearPlan]) -> str:
    """Group sizes that divide every linear; or a pruned width that this one divides."""
    dividing = [str(size) for size in GROUP_SIZES if not any(linear.after[1] % size for linear in linears)]
    fix = f"use {', '.join([*dividing, '-1'])}"
    failing = [linear for linear in linears if linear.after[1] % group]
    if all(linear.short == "down_proj" for linear in failing):
        width = failing[0].after[1]
        for ratio in sizes.RATIOS:
            if kept := sizes.kept_width(width, ratio, group):
                return f"{fix}, or prune ffn to {kept} first (ffn: {ratio:g})"
    return fix
