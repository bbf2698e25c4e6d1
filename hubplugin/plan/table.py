"""A plan as text for a terminal. It computes ratios for the eye and decides nothing."""

from collections.abc import Sequence

from hubplugin.manifest.methods import adapting_of, factorization_of, grid_of, mask_of
from hubplugin.plan import loaders, schemes, vllm_support
from hubplugin.plan.adapters import checks as adapters
from hubplugin.plan.checks import lowrank, masks
from hubplugin.plan.draft import DraftPlan, Plan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.plan.vllm_support import Verdict

_COLUMNS = (
    *("variant", "weights", "parameters", "MB", "ratio", "bits/weight", "of base", "whole model"),
    *("memory", "time", *(target.removeprefix("cuda ") for target in vllm_support.TARGETS)),
)
_LEGEND = (
    "ratio: base bytes over variant bytes; bits/weight: linears of the blocks with scales, zeros and g_idx,",
    "over the variant's own weights; of base: the same over the base's weights; whole model: all tensors",
    "over all parameters; memory and time: of compressing each alone on a CPU, within some 15 % and a factor of two;",
    "cpu and tp=1, 2, 4 (GPUs): whether stock vLLM loads it; plugin: vLLM with hubplugin installed beside it does;",
    "dense: it does as well, but computes with dense weights, which are made of the codes",
)


TRAINED = {"recover": "recovered", "distill": "distilled", "tune": "tuned"}


def render(plan: Plan, free: int | None = None) -> str:
    """Aligned lines for a terminal: sizes, then shapes, then what stock vLLM refuses and why.

    `free`: bytes of memory that compressing may take here, where they are known.
    """
    revision = f" @ {plan.revision[:12]}" if plan.revision else ""
    blocks = plan.config["num_hidden_layers"]
    head = f"{plan.model}{revision}: {plan.model_type}, {blocks} blocks, {_millions(plan.parameters)} parameters"
    rows = [_COLUMNS, _base_row(plan), *(_row(plan, draft) for draft in plan.drafts)]
    parts = [
        [head],
        _aligned(rows),
        list(_LEGEND),
        ["shapes in each block, outputs x inputs:", *_shapes(plan)],
    ]
    if spare := _spare(plan):
        parts[1].append(f"(base: {spare / 1e6:.1f} MB are stored that no variant needs, such as a tied head)")
    most = max(variant.memory.device for variant in plan.variants)
    parts[2].append(f"on a GPU, compressing would take {most / 1e9:.1f} GB of its memory at most (not measured)")
    if adapted := _adapted(plan):
        parts.append(["adapters, whose files hold", *adapted])
    if short := _short(plan, free):
        parts.append(["memory is short here", *short])
    if refusals := _refusals(plan):
        parts.append(["stock vLLM does not load", *refusals])
    if formats := _formats(plan):
        parts.append(["checkpoint formats, as no format is named", *formats])
    if needs := _needs(plan):
        parts.append(["quantized variants need", *needs])
    if notes := _notes(plan):
        parts.append(["what these numbers do not say", *notes])
    return "\n\n".join("\n".join(part) for part in parts)


def _base_row(plan: Plan) -> tuple[str, ...]:
    dtypes = "+".join(sorted({header.dtype for header in plan.tensors.values()})).lower()
    bits, whole = f"{plan.linear_bits_per_weight:.2f}", f"{8 * plan.bytes / plan.parameters:.2f}"
    numbers = (_millions(plan.parameters), f"{plan.bytes / 1e6:.1f}", "1.00", bits, bits, whole)
    return ("base", dtypes, *numbers, *("" for _ in _COLUMNS[len(numbers) + 2 :]))


def _row(plan: Plan, draft: DraftPlan) -> tuple[str, ...]:
    variant = draft.estimate
    planned = schemes.distinct(linear.scheme for linear in variant.quantized) if not variant.adapter else []
    guess = " (a guess, measured by run)" if draft.space else ""
    weights = [shape(variant) + guess] if variant.prune else []
    if draft.budget:  # which of them is known once losses are measured
        options = schemes.distinct(option for unit in draft.budget.units for option in unit.options)
        weights.append("a budget over " + "/".join(str(scheme) for scheme in options))
    else:
        weights += [str(scheme) for scheme in planned]
    if mask := mask_of(variant.steps):
        weights.append(masks.label(mask))
    if factoring := factorization_of(variant.steps):
        weights.append(f"{lowrank.label(factoring, variant.linears)} (a guess, measured by run)")
    if adapting := adapting_of(variant.steps):
        weights.append(adapters.label(adapting))
    if planned and (dense := sum(linear.scheme is None for linear in variant.linears)):
        weights.append(f"{dense} dense")
    weights += [TRAINED[step.method] for step in variant.steps if step.method in TRAINED]
    of_base = variant.linear_bits_per_weight * variant.linear_parameters / plan.linear_parameters
    return (
        variant.name,
        ", ".join(weights),
        _millions(variant.parameters),
        f"{variant.bytes / 1e6:.1f}",
        f"{plan.bytes / variant.bytes:.2f}",
        f"{variant.linear_bits_per_weight:.2f}",
        f"{of_base:.2f}",
        f"{variant.model_bits_per_weight:.2f}",
        f"{variant.peak_memory / 1e9:.1f} GB",
        _duration(variant.seconds),
        *(_loads(verdict, variant) for verdict in variant.verdicts),
    )


def _loads(verdict: Verdict, variant: VariantPlan) -> str:
    if verdict.loads:
        return "plugin" if variant.needs_plugin else "yes"
    return "dense" if verdict.dense else "no"


def _adapted(plan: Plan) -> list[str]:
    """One line for each adapter: what it alone weighs, beside the variant that it is for."""
    return [
        f"  {variant.name}: {variant.adapter.bytes / 1e6:.1f} MB, {_millions(variant.adapter.parameters)} parameters, "
        f"beside the {variant.adapter.parent.bytes / 1e6:.1f} MB of {variant.adapter.parent.name}"
        for variant in plan.variants
        if variant.adapter
    ]


SHORT = {
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv heads",
    "intermediate_size": "ffn",
}


def shape(variant: VariantPlan) -> str:
    """What pruning leaves of the blocks, in few words."""
    named = [f"{SHORT[key]} {before}>{after}" for key, (before, after) in variant.widths.items()]
    if variant.dims.blocks:
        widths = [block.ffn for block in variant.dims.blocks]
        bare = sum(not block.heads for block in variant.dims.blocks)
        named = [width for width in named if not width.startswith("ffn")]
        named += [f"ffn {min(widths)} to {max(widths)}", *([f"{bare} without attention"] if bare else [])]
    return ", ".join(named)


def _spare(plan: Plan) -> int:
    """Bytes the base stores and no variant needs: they flatter the ratio, so they are said."""
    first = plan.variants[0]
    kept = first.tensors.keys() | {f"{linear.name}.weight" for linear in (*first.quantized, *first.factored)}
    return sum(header.bytes for name, header in plan.tensors.items() if name not in kept)


def _short(plan: Plan, free: int | None) -> list[str]:
    """One line per variant whose activations go to disk, or which does not fit even so."""
    lines = []
    for variant in plan.variants:
        memory = variant.memory
        if free is None or memory.peak <= free:
            continue
        line = f"  {variant.name}: {free / 1e9:.1f} GB are free, so activations go to disk: "
        line += f"{memory.disk / 1e9:.1f} GB there, {memory.spilled / 1e9:.1f} GB in memory"
        lines.append(line + (", which is still too much" if memory.spilled > free else ""))
    return lines


def _shapes(plan: Plan) -> list[str]:
    """One line per linear of a block: its shape, and each other shape with the variants that have it."""
    first, rows = plan.variants[0].linears[0].name, []
    block = first.removesuffix(next(name for name in plan.variants[0].family.linears() if first.endswith(name)))
    for linear in (planned for planned in plan.variants[0].linears if planned.name.startswith(block)):
        changed: dict[str, dict[str, None]] = {}
        for variant in plan.variants:
            for other in variant.linears:
                if (
                    other.short == linear.short
                    and other.input_group == linear.input_group
                    and other.after != linear.before
                ):
                    changed.setdefault(_shape(other.after), {})[variant.name] = None
        after = "; ".join(f"> {shape} in {', '.join(names)}" for shape, names in changed.items())
        rows.append((f"  {linear.short}", _shape(linear.before), after))
    return _aligned(rows, left=3)


def _refusals(plan: Plan) -> list[str]:
    """One line per machine and reason, with the variants it concerns."""
    refusals: dict[tuple[str, str], list[str]] = {}
    for variant in plan.variants:
        for verdict in variant.verdicts:
            if not verdict.loads:
                refusals.setdefault((verdict.target, verdict.why), []).append(variant.name)
    every = len(plan.variants)
    return [
        f"  on {target}, {'any variant' if len(names) == every else ', '.join(names)}: {why}"
        for (target, why), names in refusals.items()
    ]


def _formats(plan: Plan) -> list[str]:
    """One line per format that was chosen for variants and why, where it is not AutoGPTQ's."""
    chosen: dict[tuple[str, str], list[str]] = {}
    for draft in plan.drafts:
        step, variant = grid_of(draft.recipe.steps), draft.estimate
        if step and step.format is None:
            planned = {linear.name: linear.scheme for linear in (*variant.linears, *variant.quantized)}
            factors = "of factors there are codes in no other" if factorization_of(draft.recipe.steps) else ""
            why = factors or schemes.why_not_autogptq(step, planned, variant.dims.vocab)
            chosen.setdefault((schemes.format_of(planned.values()), why), []).append(variant.name)
    return [f"  {', '.join(names)}: {name}{f' ({why})' if why else ''}" for (name, why), names in chosen.items()]


def _needs(plan: Plan) -> list[str]:
    """One line per kind of machine and what it must have, with the variants it concerns where not all do."""
    needs: dict[tuple[str, str], dict[str, None]] = {}
    for variant in plan.variants:
        for verdict in variant.verdicts:
            if verdict.note:
                needs.setdefault((f"on {verdict.target.split()[0]}", verdict.note), {})[variant.name] = None
        if variant.quantized and not variant.needs_plugin:
            loader = loaders.loader(schemes.stored(variant.linears, variant.head))
            if loader:
                packages = ", ".join(loader.requirements)
                needs.setdefault(("in Python", f"the packages {packages}"), {})[variant.name] = None
    several = {place for place, _ in needs if sum(place == other for other, _ in needs) > 1}
    return [
        f"  {place}{', ' + ', '.join(names) if place in several else ''}: {note}"
        for (place, note), names in needs.items()
    ]


def _notes(plan: Plan) -> list[str]:
    """One line for each thing that the numbers alone would not tell, with the variants it concerns."""
    noted: dict[str, list[str]] = {}
    for variant in plan.variants:
        for note in variant.notes:
            noted.setdefault(note, []).append(variant.name)
    return [f"  {note}" for note in plan.notes] + [f"  {', '.join(names)}: {note}" for note, names in noted.items()]


def _aligned(rows: Sequence[tuple[str, ...]], left: int = 2) -> list[str]:
    """Columns of equal width; the first `left` are text, the others numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"
