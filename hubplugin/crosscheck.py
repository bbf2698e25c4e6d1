"""What a manifest and a model cannot do together: one function per kind of contradiction, each a PlanError.

It compares settings with sizes; it decides no shapes and reads no weights.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hubplugin import sizes
from hubplugin.architecture import Dimensions
from hubplugin.errors import PlanError
from hubplugin.loadable import LinearPlan
from hubplugin.manifest import Document, Gptq, Prune, Source, Step

GROUP_SIZES = (128, 64, 32)  # besides -1, a whole row
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
    found: dict[str, Source] = {"calibrate": manifest.calibrate}
    if manifest.evaluate is not None:
        found["evaluate.perplexity"] = manifest.evaluate.perplexity
    for place, source in found.items():
        if dims.context is not None and source.tokens > dims.context:
            raise PlanError(
                f"{document.path}: {place}.tokens",
                f"{source.tokens} tokens are longer than this model's context of {dims.context}",
                f"use tokens: {dims.context} or fewer",
            )
    measured = found.get("evaluate.perplexity")
    if measured and measured.self_ and manifest.calibrate.self_ and measured.seed == manifest.calibrate.seed:
        raise PlanError(
            f"{document.path}: evaluate.perplexity.seed",
            f"the same samples (seed {measured.seed}) would calibrate and measure",
            f"use another seed, such as {measured.seed + 1}",
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


def order(steps: tuple[Step, ...], where: str) -> tuple[Prune | None, Gptq | None]:
    """The variant's steps by kind: pruning, then quantization, each at most once."""
    prune: Prune | None = None
    gptq: Gptq | None = None
    for index, step in enumerate(steps):
        place = f"{where}[{index}].method"
        if any(step.method == earlier.method for earlier in steps[:index]):
            raise PlanError(place, f"{step.method} stands twice", "keep one; each acts on all blocks")
        if isinstance(step, Gptq):
            gptq = step
        elif gptq is None:
            prune = step
        else:
            raise PlanError(place, "prune stands after gptq", "put it first: codes cannot be refitted")
    return prune, gptq


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


def packing(gptq: Gptq, block: Sequence[LinearPlan], where: str) -> None:
    """Word size and group size against every linear of a block."""
    pack = 32 // gptq.bits
    for linear in block:
        outputs, inputs = linear.after
        for count, side in ((inputs, "inputs"), (outputs, "outputs")):
            if count % pack:
                raise PlanError(
                    f"{where}.bits",
                    f"{linear.short}'s {count} {side} do not fill whole 32-bit words of {pack} codes",
                    "leave this model dense",
                )
        if gptq.group_size > 0 and inputs % gptq.group_size:
            raise PlanError(
                f"{where}.group_size",
                f"{gptq.group_size} does not divide {linear.short}'s {inputs} inputs",
                _other_groups(gptq.group_size, block),
            )


def _other_groups(group: int, block: Sequence[LinearPlan]) -> str:
    """Group sizes that divide every linear of a block; or a pruned width that this one divides."""
    fits = [str(size) for size in GROUP_SIZES if not any(linear.after[1] % size for linear in block)]
    fix = f"use {', '.join([*fits, '-1'])}"
    stuck = [linear for linear in block if linear.after[1] % group]
    if all(linear.short == "down_proj" for linear in stuck):
        width = stuck[0].after[1]
        for ratio in RATIOS:
            if kept := sizes.kept_width(width, ratio, group):
                return f"{fix}, or prune ffn to {kept} first (ffn: {ratio:g})"
    return fix
