"""Plan: the base and a draft of every variant, which holds what only measurements can decide.

Decides once what a variant becomes when they have; measures nothing and reads no weights. `planner` makes it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from hubplugin.checkpoint.headers import Header
from hubplugin.manifest.methods import factorization_of
from hubplugin.model.architectures.families import Family
from hubplugin.plan import sizes
from hubplugin.plan.assembly import Recipe, assemble
from hubplugin.plan.base import Base, Named
from hubplugin.plan.checks import lowrank
from hubplugin.plan.choices import ranks
from hubplugin.plan.choices.mixed_precision import Budget
from hubplugin.plan.choices.pruning_space import Shape, Space
from hubplugin.plan.choices.ranks import RankSpace
from hubplugin.plan.schemes import Factors, Scheme
from hubplugin.plan.variant_plan import AdapterPlan, VariantPlan


@dataclass(frozen=True)
class DraftPlan:
    """One variant before measurements."""

    recipe: Recipe
    space: Space | None  # of shapes, among which measured KL decides; None: the manifest says it all
    budget: Budget | None  # of bytes, which are spent by measured losses; None: the manifest says it all
    shape: Shape  # of `estimate`
    estimate: VariantPlan  # what is shown before anything is measured; exact where nothing is open
    parent: "DraftPlan | None" = None  # of an adapter: the variant that it is for

    @property
    def name(self) -> str:
        """The variant's name in the manifest."""
        return self.recipe.name

    def settle(
        self,
        *,
        shape: Shape | None = None,
        schemes: Mapping[str, Scheme] | None = None,
        factors: Mapping[str, Factors] | None = None,
    ) -> VariantPlan:
        """The variant as it will be made: with the shape that `space` and the schemes that `budget` left open.

        `schemes` and `factors` go by full path of the linear; without `factors`, ranks stay a guess. Raises PlanError
        where stock vLLM loads what was chosen nowhere, and ValueError where what else is open is not given, or the
        other way round.
        """
        if (shape is None) != (self.space is None) or (schemes is None) != (self.budget is None):
            raise ValueError(f"{self.name}: a shape settles a space, schemes settle a budget, and nothing else is open")
        if shape is None and schemes is None and factors is None:
            return self.estimate
        shape = shape or self.shape
        if factors is None and (space := rank_space(self.recipe, shape)):
            factors = space.before_measuring()
        return assemble(self.recipe, shape, schemes, factors=factors)


def rank_space(recipe: Recipe, shape: Shape) -> RankSpace | None:
    """What ranks are chosen among in a variant of this shape; None where nothing is factored.

    Raises PlanError for what the step and these linears cannot do together.
    """
    step, base = factorization_of(recipe.steps), recipe.base
    if step is None:
        return None
    where, dims = f"{recipe.where}[{recipe.steps.index(step)}]", shape.dimensions(base.dims)
    linears = sizes.linears(base.family, base.dims, dims, {}, shape.sources)
    lowrank.check(step, linears, where)
    return ranks.make(step, linears, where)


@dataclass(frozen=True)
class Plan:
    """The base and the drafts of all variants."""

    model: str
    revision: str | None
    model_type: str
    family: Family
    config: dict[str, Any]
    tensors: dict[str, Header]  # as stored
    parameters: int
    linear_parameters: int
    bytes: int  # as stored
    base: Base
    named: dict[str, Named]  # models that distill steps name beside it
    drafts: tuple[DraftPlan, ...]
    notes: tuple[str, ...] = ()  # about the manifest

    @cached_property
    def variants(self) -> tuple[VariantPlan, ...]:
        """Every variant as far as it is known: estimates where its draft leaves something open."""
        return tuple(draft.estimate for draft in self.drafts)

    @property
    def linear_bits_per_weight(self) -> float:
        """Bits of the base's own linears, as stored: 16 for a model in bf16."""
        names = sizes.names(self.base.family, self.base.dims)
        stored = sum(self.tensors[f"{name}.weight"].bytes for name in names)
        return 8 * stored / self.linear_parameters


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain lists, mappings, numbers and strings."""
    return {
        **_plain(plan, "drafts", "family", "base", "named"),
        "variants": [
            {
                **_plain(variant, "family", "passes", "adapter"),
                "adapter": _adapter(variant.adapter) if variant.adapter else None,
                "steps": [step.model_dump(mode="json") for step in variant.steps],
                "compression_ratio": plan.bytes / variant.bytes,
            }
            for variant in plan.variants
        ],
    }


def _adapter(adapter: AdapterPlan) -> dict[str, Any]:
    return {"of": adapter.parent.name, **_plain(adapter, "parent"), "bytes": adapter.bytes}


def _plain(record: Plan | VariantPlan | AdapterPlan, *without: str) -> dict[str, Any]:
    """A dataclass's fields but some, records inside them as mappings."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(plain(item) for item in value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return asdict(value) if hasattr(value, "__dataclass_fields__") else value

    return {field.name: plain(getattr(record, field.name)) for field in fields(record) if field.name not in without}
