"""The plan of an adapter: that of the variant it is for, with factors beside each linear of its blocks.

Arithmetic on what the other variant's plan says; refuses what checks.py refuses. Reads no weights.
"""

from dataclasses import replace

from hubplugin.checkpoint.format_names import LORA_A, LORA_B, lora
from hubplugin.checkpoint.headers import Header
from hubplugin.manifest.methods import adapting_of, row_of
from hubplugin.manifest.steps.adapter import Adapting
from hubplugin.model.architectures import architecture
from hubplugin.plan.adapters import checks
from hubplugin.plan.assembly import Recipe
from hubplugin.plan.costs import estimates, workload
from hubplugin.plan.draft import DraftPlan
from hubplugin.plan.variant_plan import AdapterPlan, VariantPlan

NOTE = (
    "it is an adapter beside the weights of {}: sizes are of both together, as both are served; its own files are the "
    "adapter alone. An engine computes both, which is more work than {} alone (run on a CPU, not tried on a GPU)"
)


def draft(recipe: Recipe, parent: DraftPlan) -> DraftPlan:
    """The draft of an adapter, by what is known of the variant it is for. Raises PlanError."""
    return DraftPlan(recipe, None, None, parent.shape, variant(recipe, parent.estimate), parent)


def on(drafted: DraftPlan, parent: VariantPlan) -> DraftPlan:
    """The draft, now that measurements have settled the variant it is for."""
    return replace(drafted, estimate=variant(drafted.recipe, parent))


def variant(recipe: Recipe, parent: VariantPlan) -> VariantPlan:
    """The plan of an adapter for `parent`. Raises PlanError for what both cannot do together."""
    step, base = adapting_of(recipe.steps), recipe.base
    assert step is not None
    checks.check_parent(step, parent, recipe.where)
    row_of(step).fits(step, parent.linears, f"{recipe.where}[0]")
    adapter = AdapterPlan(parent, step.rank, _tensors(step, parent, base.tensors[_first(recipe, parent)].dtype))
    work = workload.of(recipe.document, base, recipe.steps)
    shapes = architecture.linear_shapes(base.family, base.dims)
    sampled = recipe.document.manifest.calibrate.self_ * base.bytes
    parameters = parent.parameters + adapter.parameters
    weights = parent.linear_parameters + adapter.parameters  # as factors count everywhere
    linear_bits = parent.linear_bits_per_weight * parent.linear_parameters + 8 * adapter.bytes
    return replace(
        parent,
        name=recipe.name,
        steps=recipe.steps,
        adapter=adapter,
        parameters=parameters,
        linear_parameters=weights,
        bytes=parent.bytes + adapter.bytes,
        linear_bits_per_weight=linear_bits / weights,
        model_bits_per_weight=8 * (parent.bytes + adapter.bytes) / parameters,
        memory=estimates.memory(base.family, base.dims, shapes, work, sampled),
        seconds=estimates.seconds(base.family, base.dims, shapes, work),
        notes=(NOTE.format(parent.name, parent.name), *parent.notes),
        passes=(),
    )


def _first(recipe: Recipe, parent: VariantPlan) -> str:
    """The base's name of the first linear's weight, whose dtype the factors have."""
    block, name = recipe.base.family.block.format(i=parent.sources[0]), parent.linears[0].name
    return f"{block}.{name.removeprefix(parent.family.block.format(i=0) + '.')}.weight"


def _tensors(step: Adapting, parent: VariantPlan, dtype: str) -> dict[str, Header]:
    """A and B of every linear of the blocks, as PEFT names them."""
    tensors = {}
    for linear in parent.linears:
        outputs, inputs = linear.after
        tensors[lora(linear.name, LORA_A)] = Header(dtype, (step.rank, inputs))
        tensors[lora(linear.name, LORA_B)] = Header(dtype, (outputs, step.rank))
    return tensors
