"""What a manifest and a model cannot do together: one function per kind of contradiction, each a PlanError.

It compares settings with sizes; it decides no shapes and reads no weights.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hubplugin.checkpoint import format_names
from hubplugin.errors import PlanError
from hubplugin.manifest.gptq import Quantization
from hubplugin.manifest.methods import Kind, kind_of, pruning_of, quantization_of
from hubplugin.manifest.prune import Prune
from hubplugin.manifest.schema import Document, Step
from hubplugin.manifest.source import Source
from hubplugin.model.architecture import Dimensions
from hubplugin.model.families import Family
from hubplugin.plan import masks, schemes, sizes, vllm_support
from hubplugin.plan.choices.pruning_space import Space
from hubplugin.plan.schemes import LinearPlan, Scheme

GROUP_SIZES = (128, 64, 32)  # besides -1, a whole row
GPTQMODEL_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2")  # phi3's fused linears it would split
LONGEST_NAME = 96  # of a repo on the Hub
RATIOS = tuple(hundredth / 100 for hundredth in range(1, 100))  # tried to find one to propose


def text_model(config: Mapping[str, Any], where: str) -> None:
    """The base must be unquantized and generate text."""
    if config.get("quantization_config") is not None:
        raise PlanError(
            f"{where}: quantization_config",
            "the base is already quantized",
            "name the original, unquantized model",
        )
    names = config.get("architectures") or []
    if names and not any(str(name).endswith("ForCausalLM") for name in names):
        raise PlanError(f"{where}: architectures", f"{names[0]} does not generate text", "name a ...ForCausalLM model")


def sources(document: Document, dims: Dimensions) -> None:
    """Token sources against the model's context, and evaluation against calibration."""
    manifest = document.manifest
    found: dict[str, Source] = dict(manifest.sources())
    for place, source in found.items():
        if dims.context is not None and source.sequence_length > dims.context:
            raise PlanError(
                f"{document.path}: {place}.{source.length_key}",
                f"{source.sequence_length} tokens are longer than this model's context of {dims.context}",
                f"use {source.length_key}: {dims.context} or fewer",
            )
    measured = found.pop("evaluate.perplexity", None)
    seeds = {source.seed for source in found.values() if source.self_}
    if measured and measured.self_ and measured.seed in seeds:
        raise PlanError(
            f"{document.path}: evaluate.perplexity.seed",
            f"the same samples (seed {measured.seed}) would calibrate and measure",
            f"use another seed, such as {max(seeds) + 1}",
        )


def repo_names(document: Document) -> None:
    """The repos that variants go to, against each other, the base and the Hub's rules for names."""
    manifest = document.manifest
    where = f"{document.path}: publish.repo"
    taken = {manifest.model.split("@")[0].casefold(): "the base model"}
    for variant in manifest.variants:
        repo = manifest.repo_of(variant)
        name = repo.split("/", 1)[1]
        if len(name) > LONGEST_NAME:
            raise PlanError(
                where,
                f"{name!r} has {len(name)} characters, the Hub allows {LONGEST_NAME}",
                "shorten repo or the variant's name",
            )
        legal = re.fullmatch(r"\w|\w[\w.-]*\w", name, re.ASCII)
        if not legal or "--" in name or ".." in name or name.endswith(".git"):
            raise PlanError(
                where,
                f"{name!r} is no repo name on the Hub",
                "use letters, digits and single '-', '.', '_' between them; no .git at the end",
            )
        if repo.casefold() in taken:
            raise PlanError(
                where,
                f"{variant} and {taken[repo.casefold()]} would both be {repo}",
                "rename the variant or the repo",
            )
        taken[repo.casefold()] = variant


def order(steps: tuple[Step, ...], where: str) -> tuple[Prune | None, Quantization | None]:
    """The variant's steps by kind: pruning, recovery, which needs it, quantization or a mask; each at most once."""
    prune: Prune | None = None
    gptq: Quantization | None = None
    for index, step in enumerate(steps):
        place = f"{where}[{index}].method"
        if any(step.method == earlier.method for earlier in steps[:index]):
            raise PlanError(place, f"{step.method} stands twice", "keep one; each acts on all blocks")
        if kind_of(step) is Kind.RECOVER:
            _recovery(prune, gptq, place)
        elif kind_of(step) is Kind.QUANTIZE:
            gptq = quantization_of([step])
        elif kind_of(step) is Kind.PRUNE:
            if gptq is not None:
                raise PlanError(place, "prune stands after gptq", "put it first: codes cannot be refitted")
            prune = pruning_of([step])
    masks.order(steps, where)
    return prune, gptq


def _recovery(prune: Prune | None, gptq: Quantization | None, where: str) -> None:
    """Recovery trains dense weights that pruning has left."""
    if gptq is not None:
        raise PlanError(where, "recover stands after gptq", "put it before: codes cannot be trained")
    if prune is None:
        fix = "put it after a prune step, or remove it"
        raise PlanError(where, "recover trains back what pruning took, and nothing is pruned before it", fix)


def engine(gptq: Quantization, prune: Prune | None, model_type: str, where: str) -> None:
    """What gptqmodel takes of a step, of a variant and of a model, where it is the engine."""
    if gptq.engine == "hubplugin":
        return
    fix = "or remove engine: gptqmodel"
    for name in Quantization.model_fields:
        if name in gptq.model_fields_set and name not in Quantization.shared:
            raise PlanError(f"{where}.{name}", "gptqmodel has no such setting, our own engine has", f"remove it, {fix}")
    if prune:
        raise PlanError(
            f"{where}.engine",
            "gptqmodel quantizes whole models, and pruning here is done block by block in our own engine",
            f"prune in a variant of its own and name its folder as the `model:` of a second manifest, {fix}",
        )
    if model_type not in GPTQMODEL_FAMILIES:
        raise PlanError(
            f"{where}.engine",
            f"models of type {model_type} are not among those that gptqmodel is known to return whole",
            f"use a model of type {', '.join(GPTQMODEL_FAMILIES)}, {fix}",
        )
    if not gptq.symmetric:
        raise PlanError(f"{where}.symmetric", "zero points of gptqmodel's are not taken over", f"use true, {fix}")
    if gptq.format == format_names.COMPRESSED_TENSORS or gptq.bits not in schemes.GPTQ_BITS:
        raise PlanError(
            f"{where}.{'format' if gptq.format else 'bits'}",
            "gptqmodel's scales are float16, which AutoGPTQ's format alone keeps as they are, with 4 or 8 bits",
            f"use bits: 4 or 8 and no format, {fix}",
        )
    if gptq.damp == 1:
        raise PlanError(f"{where}.damp", "gptqmodel takes shares below 1", f"use 0.99 or less, {fix}")


def budget(gptq: Quantization, prune: Prune | None, found: Mapping[str, Scheme | None], where: str) -> None:
    """What excludes a budget, which chooses bits, group sizes and symmetry itself."""
    if gptq.budget is None:
        return
    for key in ("bits", "group_size", "symmetric", "activation_bits"):
        if key in gptq.model_fields_set:
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
    rare = [one for one in gptq.budget.options if one.bits not in schemes.GPTQ_BITS or not one.symmetric]
    if rare and any(scheme and scheme.layout == format_names.GPTQ for scheme in found.values()):
        raise PlanError(
            f"{where}.budget.options",
            "of AutoGPTQ's format stock vLLM reads 4 and 8 bits and symmetric grids alone",
            "use format: compressed-tensors, or leave it out",
        )


def experts(prune: Prune | None, gptq: Quantization | None, family: Family, where: str) -> None:
    """What a model with experts cannot be given."""
    if family.experts is None:
        return
    if prune:
        raise PlanError(
            f"{where}[0]",
            "this model has experts: each would keep channels of its own, and vLLM runs them as one matrix",
            "remove the step, or prune a model without experts",
        )
    if gptq and gptq.budget is not None:
        raise PlanError(
            f"{where}[0].budget",
            "vLLM wants all experts of a block alike, and losses are not yet summed over them",
            "use bits and group_size instead",
        )


def prunable(family: Family, model_type: str, where: str) -> None:
    """Whether the blocks are of a kind that pruning knows."""
    if not family.widths:
        raise PlanError(
            where,
            f"blocks of {model_type} already differ from one another",
            "prune the model it was made from, by as much as you want in all",
        )


def biases(prune: Prune | None, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys that give every linear of a block a bias, where asked for. Raises PlanError where the class has none."""
    if not (prune and prune.bias):
        return {}
    if config["model_type"] not in ("llama", "nemotron-nas"):
        raise PlanError(where, f"linears of {config['model_type']} have no biases to fit", "remove it")
    return {"attention_bias": True, "mlp_bias": True}


def depth(prune: Prune, layers: int, where: str) -> None:
    """Something of everything must stay; whole layers are taken from those that have lost nothing else."""
    gone = prune.layers or 0
    parts = gone + (prune.attention or 0) if gone else 0
    for key, others in (("layers", 0), ("attention", gone), ("mlp", parts)):
        count, most = getattr(prune, key) or 0, layers - 1 - others
        if count > most:
            raise PlanError(f"{where}.{key}", f"{count} of {layers} cannot go", f"use {most} or fewer")


def reachable(space: Space, outside: int, where: str) -> None:
    """A target that some shape meets, and that something must go for."""
    linears, slack = sizes.linear_parameters(space.family, space.base), space.slack(space.weights)
    if space.step.ratio and space.step.ratio * linears <= slack:
        fix = f"use a ratio of {slack / linears + 0.005:.2f} or more"
        raise PlanError(f"{where}.ratio", f"{space.step.ratio:g} of the weights rounds to none of them", fix)
    if space.step.params is None:
        return
    whole = outside + linears
    if not outside < space.step.params < whole:
        raise PlanError(
            f"{where}.params",
            f"the model has {whole} parameters, {outside} of them outside the blocks' linears",
            f"use a number between, such as {outside + (whole - outside) * 7 // 10}",
        )


def kept_heads(prune: Prune, dims: Dimensions, group: int, where: str) -> tuple[int, int]:
    """(query heads, KV heads) that stay. Raises PlanError where no count is near the share."""
    each, kv_heads = dims.heads // dims.kv_heads, dims.kv_heads
    if prune.kv_heads is not None:
        kv_heads = _kept(prune.kv_heads, kv_heads, each * dims.head_dim, group, f"{where}.kv_heads", "KV groups")
    if prune.heads is not None:
        inside = "query heads of a KV group"
        each = _kept(prune.heads, each, kv_heads * dims.head_dim, group, f"{where}.heads", inside)
    return kv_heads * each, kv_heads


def _kept(share: float, count: int, columns: int, group: int, where: str, what: str) -> int:
    """How many of `count` stay, the nearest to the share such that o_proj's inputs are whole groups."""
    fits = [kept for kept in range(1, count) if kept * columns % group == 0]
    if not fits:
        raise PlanError(
            where, f"there are {count} {what}, and none can go", "prune ffn or layers, or another group_size"
        )
    return min(fits, key=lambda kept: (abs(kept - count * (1 - share)), -kept))


def kept_ffn(ratio: float, group: int | None, before: int, where: str) -> int:
    """The pruned FFN width. Raises PlanError where no allowed width is near the ratio."""
    kept = sizes.kept_width(before, ratio, group)
    if kept is not None:
        return kept
    unit = sizes.width_unit(sizes.SMALL_TILE, group)
    fits = [near for near in RATIOS if sizes.kept_width(before, near, group)]
    if not fits:
        raise PlanError(
            where,
            f"no multiple of {unit} below {before} FFN channels is left to keep",
            "prune a wider model, or quantize alone",
        )
    count = "none" if ratio < fits[0] else "all"
    raise PlanError(
        where,
        f"{ratio:g} of {before} FFN channels rounds to {count} of them: widths are multiples of {unit}",
        f"use a ratio from {fits[0]:g} to {fits[-1]:g}",
    )


def head(gptq: Quantization, family: Family, dims: Dimensions, where: str) -> None:
    """A quantized head is a matrix of its own."""
    if gptq.lm_head and dims.tied:
        raise PlanError(
            f"{where}.lm_head",
            f"this model's head is its embedding ({family.embed}), which stays as it is",
            "leave lm_head out, or use a model with tie_word_embeddings: false",
        )


def patterns(gptq: Quantization, names: Sequence[str], where: str) -> None:
    """Every pattern names linears, and no override only those that others have taken."""
    left = [name for name in names if not schemes.is_ignored(gptq, name)]
    for place, given in (("ignore", gptq.ignore), ("overrides", tuple(gptq.overrides))):
        for pattern in given:
            if not any(schemes.matches(pattern, name) for name in names):
                raise PlanError(
                    f"{where}.{place}",
                    f"{pattern!r} names no linear that this step sees",
                    f"write a path's end or a pattern, such as {_examples(names)}",
                )
    counting = {schemes.override_of(gptq, name) for name in left}
    for pattern in gptq.overrides:
        if pattern not in counting:
            raise PlanError(
                f"{where}.overrides",
                f"{pattern!r} names only linears that are ignored or that an earlier pattern names",
                "put it before the wider pattern, or remove it",
            )
    if not left:
        raise PlanError(f"{where}.ignore", "nothing is left to quantize", "ignore less, or remove the step")


def _examples(names: Sequence[str]) -> str:
    """A few patterns that this model has."""
    ends = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    return ", ".join([*ends[:3], names[0]])


def grids(gptq: Quantization, found: Mapping[str, Scheme | None], where: str) -> None:
    """Settings that exclude one another, wherever the step or one of its overrides brings them together."""
    for name, scheme in found.items():
        if scheme is None or scheme.weight_only:
            continue
        pattern = schemes.override_of(gptq, name)
        place = f"{where}.overrides.{pattern}" if pattern else where
        if gptq.format == format_names.GPTQ:
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


def fused(linears: Sequence[LinearPlan], where: str) -> None:
    """Linears that vLLM stacks into one matrix have one scheme, or are all dense."""
    for members in vllm_support.fused(linears):
        if len({linear.scheme for linear in members}) > 1:
            told = ", ".join(dict.fromkeys(f"{linear.short} {linear.scheme or 'dense'}" for linear in members))
            parent = members[0].experts or members[0].name.rsplit(".", 1)[0]
            shorts = ", ".join(dict.fromkeys(linear.short for linear in members))
            shorts += " of every expert" if members[0].experts else ""
            raise PlanError(
                where,
                f"vLLM stacks these linears of {parent} into one, and they differ: {told}",
                f"let ignore and overrides name all of {shorts}, or none",
            )


def packing(linears: Sequence[LinearPlan], where: str) -> None:
    """Word size and group size against every linear."""
    for linear in linears:
        scheme = linear.scheme
        if scheme is None:
            continue
        outputs, inputs = linear.after
        whole = vllm_support.whole_words(scheme)
        zeros = scheme.layout == format_names.GPTQ or not scheme.symmetric  # they are packed along outputs
        for count, side in ((inputs, "inputs"), *([(outputs, "outputs")] if zeros else [])):
            if count % whole:
                raise PlanError(
                    f"{where}.bits",
                    f"{linear.short}'s {count} {side} do not fill whole 32-bit words of {whole} codes",
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
    fits = [str(size) for size in GROUP_SIZES if not any(linear.after[1] % size for linear in linears)]
    fix = f"use {', '.join([*fits, '-1'])}"
    stuck = [linear for linear in linears if linear.after[1] % group]
    if all(linear.short == "down_proj" for linear in stuck):
        width = stuck[0].after[1]
        for ratio in RATIOS:
            if kept := sizes.kept_width(width, ratio, group):
                return f"{fix}, or prune ffn to {kept} first (ffn: {ratio:g})"
    return fix
