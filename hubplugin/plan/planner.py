"""Manifest + tensor headers + family -> Plan: what every variant will look like, before a weight is read.

Every cross-check between the manifest and the model is made here, before any work. It reads no weights,
opens no file and knows no torch.
"""

from collections.abc import Mapping, Sequence
from math import lcm
from typing import Any

from hubplugin.checkpoint.headers import Header
from hubplugin.manifest.methods import grid_of, pruning_of
from hubplugin.manifest.schema import Document
from hubplugin.manifest.steps.prune import Prune
from hubplugin.model.architectures import architecture, families, pruned_config
from hubplugin.plan import base as base_model
from hubplugin.plan import sizes
from hubplugin.plan.adapters import checks as adapters
from hubplugin.plan.adapters import drafting
from hubplugin.plan.assembly import Open, Recipe, assemble, head_plan, resolve_schemes
from hubplugin.plan.base import Base, Named
from hubplugin.plan.checks import lowrank, pruning, quantization, sources, this_machine
from hubplugin.plan.checks import steps as step_order
from hubplugin.plan.checks.training import distilling, tuning
from hubplugin.plan.choices import mixed_precision, pruned_sizes, pruning_space
from hubplugin.plan.choices.mixed_precision import Budget
from hubplugin.plan.choices.pruning_space import Space
from hubplugin.plan.draft import DraftPlan, Plan, rank_space
from hubplugin.plan.schemes import Scheme


def make(
    document: Document,
    config: Mapping[str, Any],
    tensors: Mapping[str, Header],
    *,
    revision: str | None = None,
    named: Mapping[str, Named] | None = None,
) -> Plan:
    """Draft every variant from the base's parsed config.json and its safetensors headers, by tensor name.

    `named` are the models that distill steps name, by these names. Pure: no file, no network. Raises FamilyError for
    an unknown architecture, and PlanError for everything else that the manifest and this model cannot do together.
    """
    manifest = document.manifest
    where = f"{manifest.model}/config.json"
    family = families.match(dict(config), where)
    sources.check_base(config, where)
    base = base_model.read(manifest.model, family, config, tensors)
    sources.check_sources(document, base.dims)
    if manifest.publish is not None:
        sources.check_repos(document)
    drafts = _drafts([_recipe(document, name, base, named or {}) for name in manifest.variants])
    estimates = [draft.estimate for draft in drafts]
    return Plan(
        model=manifest.model,
        revision=revision,
        model_type=base.model_type,
        family=family,
        config=base.config,
        tensors=dict(tensors),
        parameters=base.parameters,
        linear_parameters=base.linear_parameters,
        bytes=base.bytes,
        base=base,
        named=dict(named or {}),
        drafts=drafts,
        notes=(*document.notes, *sources.notes(document), *this_machine.notes(document, estimates)),
    )


def _drafts(recipes: Sequence[Recipe]) -> tuple[DraftPlan, ...]:
    """The drafts of all variants, those of adapters by the drafts of the variants they are for."""
    drafts: dict[str, DraftPlan] = {}
    for recipe in recipes:
        adapting = adapters.check_steps(recipe.document.manifest, recipe.name, recipe.where)
        drafts[recipe.name] = drafting.draft(recipe, drafts[adapting.of]) if adapting else _draft(recipe)
    return tuple(drafts.values())


def _recipe(document: Document, name: str, base: Base, named: Mapping[str, Named]) -> Recipe:
    """What a variant is made of: of the base, or of a student that its distill step names."""
    steps, where = document.manifest.variants[name], f"{document.path}: variants.{name}"
    step_order.check_order(steps, where)
    student, teacher = distilling.start(document, steps, base, named, where)
    return Recipe(document, name, steps, student, teacher)


def _draft(recipe: Recipe) -> DraftPlan:
    """What one variant's steps leave to measurements, and an estimate of what they will decide."""
    base, where = recipe.base, recipe.where
    tuning.check_variant(recipe.steps, recipe.document.manifest, where)
    lowrank.check_codes(recipe.steps, where)
    prune, grid = pruning_of(recipe.steps), grid_of(recipe.steps)
    if prune:
        pruning.check_family(base.family, base.model_type, f"{where}[0]")
    if grid:
        quantization.experts(grid, base.family, recipe.last)
    resolved = resolve_schemes(recipe, base.dims)
    space = _space(prune, resolved, base, f"{where}[0]") if prune else None
    shape = space.before_measuring(base.outside_linears) if space else pruning_space.unchanged(base.dims)
    budget = _budget(recipe, resolved)
    chosen = budget.before_measuring() if budget else None
    ranks = rank_space(recipe, shape)
    factors = ranks.before_measuring() if ranks else None
    estimate = assemble(recipe, shape, chosen, Open(space, budget, ranks), factors)
    return DraftPlan(recipe, space if prune and prune.measures else None, budget, shape, estimate)


def _space(prune: Prune, resolved: Mapping[str, Scheme | None], base: Base, where: str) -> Space:
    """What a step leaves to measurements; where it names counts, one choice of widths and heads."""
    channels, columns = (_group(resolved, base.family.width(name).consumer) for name in ("ffn", "heads"))
    if any(getattr(prune, key) is not None for key in Prune.targets):
        heads = pruned_sizes.heads(base.dims, columns if columns > 1 else None)
        supported = pruned_config.supported_heads(prune, base.config, base.family, base.dims, heads, where)
        widths = pruned_sizes.widths(base.dims.ffn, channels, prune.layout == "per-layer")
        space = Space(prune, base.family, base.dims, widths, supported)
        pruning.check_target(space, base.outside_linears, where)
        return space
    ffn = base.dims.ffn
    if prune.ffn is not None:
        ffn = pruned_sizes.kept_ffn(prune.ffn, channels, ffn, f"{where}.ffn")
    kept = pruned_sizes.kept_heads(prune, base.dims, columns, where)
    pruning.check_depth(prune, base.dims.layers, where)
    return Space(prune, base.family, base.dims, (ffn,), (kept,))


def _group(resolved: Mapping[str, Scheme | None], consumer: str) -> int:
    """The multiple that pruned widths keep for the sake of groups: whole groups for their consumer in every block."""
    schemes = (scheme for name, scheme in resolved.items() if name.endswith(f".{consumer}") and scheme)
    return lcm(*(scheme.group_size for scheme in schemes if scheme.group_size > 0))


def _budget(recipe: Recipe, resolved: Mapping[str, Scheme | None]) -> Budget | None:
    """What a step's budget chooses among. Nothing is pruned in such a variant, so shapes are the base's."""
    step, base = grid_of(recipe.steps), recipe.base
    if step is None or step.budget is None:
        return None
    linears = sizes.linears(base.family, base.dims, base.dims, resolved)
    head = head_plan(resolved, base)
    dense = architecture.expected(base.config, base.family, base.dims)
    return mixed_precision.make(step, (*linears, *([head] if head else [])), dense, base.tensors, recipe.last)
