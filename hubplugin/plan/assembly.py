"""Steps, a base, a shape and schemes -> VariantPlan: tensors, sizes, costs, and where stock vLLM loads it.

Arithmetic and checks on what is decided, or assumed until it is measured; chooses nothing itself. Reads no weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hubplugin.checkpoint.format_names import COMPRESSED_TENSORS, GPTQ
from hubplugin.errors import PlanError
from hubplugin.manifest.methods import (
    factorization_of,
    grid_of,
    mask_of,
    pruning_of,
    quantization_of,
    recovery_of,
    row_of,
    tuning_of,
)
from hubplugin.manifest.schema import Document, Step
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.model.architectures import architecture, pruned_config
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.plan import base as base_model
from hubplugin.plan import loaders, schemes, sizes, vllm_support
from hubplugin.plan.base import Base
from hubplugin.plan.checks import codebook, lowrank, masks, quantization
from hubplugin.plan.checks import steps as step_order
from hubplugin.plan.choices import pruning_space
from hubplugin.plan.choices.mixed_precision import Budget
from hubplugin.plan.choices.pruning_space import Shape, Space
from hubplugin.plan.choices.ranks import RankSpace
from hubplugin.plan.costs import estimates, workload
from hubplugin.plan.schemes import Factors, LinearPlan, Scheme
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.plan.vllm_support import Verdict


@dataclass(frozen=True)
class Recipe:
    """What a variant is made of: steps of a manifest on a base."""

    document: Document
    name: str  # of the variant
    steps: tuple[Step, ...]
    base: Base  # that its weights start from: the manifest's, or the student of its distill step
    teacher: Base | None = None  # of a distill step; None: the manifest's base, or none that is loaded here

    @property
    def where(self) -> str:
        """The variant's place in the manifest."""
        return f"{self.document.path}: variants.{self.name}"

    @property
    def last(self) -> str:
        """The place of the last step but one that tunes it, where codes and masks stand."""
        return f"{self.where}[{len(self.steps) - 1 - (tuning_of(self.steps) is not None)}]"


@dataclass(frozen=True)
class Open:
    """What measurements are still to decide of a variant that is estimated."""

    space: Space | None = None
    budget: Budget | None = None
    ranks: RankSpace | None = None

    @property
    def probes(self) -> int:
        """Changes of single blocks that are run through the model at one time, to decide."""
        return max(self.space.probes if self.space else 0, *self._bits_and_ranks)

    @property
    def tried(self) -> int:
        """Changes that are run through the model in all."""
        return (self.space.tried if self.space else 0) + sum(self._bits_and_ranks)

    @property
    def _bits_and_ranks(self) -> tuple[int, int]:
        bits = len(self.budget.units) if self.budget else 0
        return bits, sum(len(group.probes) for group in self.ranks.groups) if self.ranks else 0


def assemble(
    recipe: Recipe,
    shape: Shape,
    chosen: Mapping[str, Scheme] | None = None,
    still_open: Open | None = None,
    factors: Mapping[str, Factors] | None = None,
) -> VariantPlan:
    """The plan of a variant of this shape. `chosen` are the schemes a budget was spent on, `factors` the ranks that a
    search has found, by full path of the linear.

    Raises PlanError for what these steps cannot do to this base.
    """
    base, where = recipe.base, recipe.where
    dims, prune = shape.dimensions(base.dims), pruning_of(recipe.steps)
    resolved = {**resolve_schemes(recipe, dims), **(chosen or {})}
    config = pruned_config.config(base.config, base.family, base.dims, dims, shape.sources, f"{where}[0]")
    config |= pruned_config.biases(prune, config, f"{where}[0].bias")
    family = base_model.family_of(base, config, where)
    linears = sizes.linears(base.family, base.dims, dims, resolved, shape.sources, factors)
    head = head_plan(resolved, base)
    planned = linears if head is None else (*linears, head)
    for index, step in enumerate(recipe.steps):
        row_of(step).fits(step, planned, f"{where}[{index}]")
    dense = architecture.expected(config, family, dims)
    tensors = sizes.tensors(dense, sizes.stored(dense, base.tensors, base.family, shape.sources), planned)
    parameters = sizes.parameters(sizes.with_factors(dense, tensors))
    weight = sizes.measure(tensors, linears, parameters)
    still_open = still_open or Open()
    verdicts = _verdicts(config["model_type"], dims, planned, still_open.budget)
    _check_loads(verdicts, recipe)
    work = workload.of(recipe.document, base, recipe.steps, recipe.teacher)
    work = replace(work, probes=still_open.probes, tried=still_open.tried)
    shapes, sampled = architecture.linear_shapes(base.family, base.dims), _sampled_bytes(recipe)
    may_differ = still_open.space is not None and still_open.space.per_layer
    variant = VariantPlan(
        name=recipe.name,
        steps=_resolved_steps(recipe.steps, linears, resolved),
        family=family,
        widths=sizes.changed(base.dims, dims),
        dims=dims,
        sources=shape.sources,
        config=config,
        linears=linears,
        head=head,
        tensors=tensors,
        parameters=parameters,
        linear_parameters=sizes.linear_weights(tensors, linears),
        bytes=weight.bytes,
        linear_bits_per_weight=weight.linear_bits_per_weight,
        model_bits_per_weight=weight.model_bits_per_weight,
        memory=estimates.memory(base.family, base.dims, shapes, work, sampled),
        seconds=estimates.seconds(base.family, base.dims, shapes, work),
        verdicts=verdicts,
        notes=(
            *_notes_of_steps(recipe.steps, planned),
            # what our plugin alone loads is no other loader's either
            *(vllm_support.notes(config["model_type"], may_differ) or loaders.notes(schemes.stored(linears, head))),
        ),
    )
    return replace(variant, passes=_passes(recipe, shape, variant, factors))


def _notes_of_steps(steps: Sequence[Step], planned: Sequence[LinearPlan]) -> tuple[str, ...]:
    """What a user must know of what the steps leave."""
    return (
        *masks.notes(mask_of(steps)),
        *lowrank.notes(factorization_of(steps)),
        *codebook.notes(quantization_of(steps), planned),
    )


def resolve_schemes(recipe: Recipe, dims: Dimensions) -> dict[str, Scheme | None]:
    """Every linear's scheme by its full path, for blocks of the sizes `dims`; the head's where the step asks for it.

    Empty where nothing is quantized. Raises PlanError where settings exclude one another.
    """
    step, base, where = quantization_of(recipe.steps), recipe.base, recipe.last
    if step is None:
        return {}
    names = sizes.names(base.family, dims)
    if not isinstance(step, GridQuantization):
        schemes.not_ignored(step, names, where, "quantize")
        return schemes.resolve(step, names, base.dims.vocab)
    prune = pruning_of(recipe.steps)
    quantization.engine(step, prune, base.model_type, where)
    quantization.head(step, base.family, base.dims, where)
    names += [base.family.head] if step.lm_head else []
    quantization.overrides(step, names, schemes.not_ignored(step, names, where, "quantize"), where)
    if factorization_of(recipe.steps):  # the one format that codes of factors have here
        step = step.model_copy(update={"format": COMPRESSED_TENSORS})
    resolved = schemes.resolve(step, names, base.dims.vocab)
    quantization.grids(step, resolved, where)
    quantization.budget(step, prune, resolved, where)
    return resolved


def head_plan(resolved: Mapping[str, Scheme | None], base: Base) -> LinearPlan | None:
    """The output head where it is quantized."""
    scheme = resolved.get(base.family.head)
    shape = (base.dims.vocab, base.dims.hidden)
    return LinearPlan(base.family.head, base.family.head, shape, shape, scheme) if scheme else None


def _passes(
    recipe: Recipe, shape: Shape, variant: VariantPlan, factors: Mapping[str, Factors] | None
) -> tuple[VariantPlan, ...]:
    """A plan for each pass over the blocks, where one pass is not all: of the base, then of what the first has made."""
    groups = step_order.passes(variant.steps)
    if not groups or (len(groups) == 1 and recovery_of(variant.steps) is None):
        return ()
    first, *later = groups
    own = factors if factorization_of(first) else None  # of a student, whose first pass is not of its base
    plans = [assemble(replace(recipe, steps=first), shape, factors=own)]
    for steps in later:
        before = plans[-1]
        read = base_model.read(recipe.name, before.family, before.config, before.tensors)
        own = factors if factorization_of(steps) else None
        plans.append(assemble(replace(recipe, steps=steps, base=read), pruning_space.unchanged(read.dims), factors=own))
    return tuple(plans)


def _sampled_bytes(recipe: Recipe) -> int:
    """Bytes of the model that calibration text is sampled from; 0 where text is given."""
    return recipe.document.manifest.calibrate.self_ * recipe.base.bytes


def _verdicts(
    model_type: str, dims: Dimensions, linears: Sequence[LinearPlan], open_budget: Budget | None
) -> tuple[Verdict, ...]:
    """What loads the variant; before a budget is spent, what loads it whatever is chosen."""
    verdicts = vllm_support.verdicts(model_type, dims, linears)
    for chosen in open_budget.corners() if open_budget else ():
        other = [replace(linear, scheme=chosen.get(linear.name, linear.scheme)) for linear in linears]
        of_choice = vllm_support.verdicts(model_type, dims, other)
        verdicts = tuple(one if two.loads else two for one, two in zip(verdicts, of_choice, strict=True))
    return verdicts


def _check_loads(verdicts: Sequence[Verdict], recipe: Recipe) -> None:
    """Raise PlanError where no kind of machine loads the variant."""
    if not any(verdict.loads for verdict in verdicts):
        whys, step = "; ".join(dict.fromkeys(verdict.why for verdict in verdicts)), grid_of(recipe.steps)
        fix = "use format: compressed-tensors, or leave it out" if step and step.format == GPTQ else "use another model"
        raise PlanError(recipe.where, f"stock vLLM loads it nowhere: {whys}", f"{fix}, or other bits")


def _resolved_steps(
    steps: Sequence[Step], linears: Sequence[LinearPlan], resolved: Mapping[str, Scheme | None]
) -> tuple[Step, ...]:
    """The steps, one of grids with the format it gets and with what most linears get of a budget: cards name that."""
    return tuple(
        _resolved_step(step, linears, resolved) if isinstance(step, GridQuantization) else step for step in steps
    )


def _resolved_step(
    step: GridQuantization, linears: Sequence[LinearPlan], resolved: Mapping[str, Scheme | None]
) -> GridQuantization:
    known: dict[str, Any] = {"format": schemes.format_of(resolved.values())}
    if step.budget:
        usual = schemes.distinct(linear.scheme for linear in linears)[0]
        known |= {"bits": usual.bits, "group_size": usual.group_size, "symmetric": usual.symmetric}
    return step.model_copy(update=known)
