"""What an adapter and the variant that it is for cannot do together: each contradiction a PlanError.

Knows steps, schemes and shapes; no weights.
"""

import difflib
from collections.abc import Mapping, Sequence

from hubplugin.errors import PlanError
from hubplugin.manifest.methods import (
    Kind,
    adapting_of,
    closed_form_of,
    distillation_of,
    kind_of,
    pruning_of,
    row_of,
)
from hubplugin.manifest.schema import Manifest, Step
from hubplugin.manifest.steps.adapter import Adapting, Lora
from hubplugin.model.architectures.families import PER_LAYER
from hubplugin.plan import schemes
from hubplugin.plan.schemes import LinearPlan
from hubplugin.plan.variant_plan import VariantPlan

LEAST = 2  # sequences: one to train on, one to hold out
OTHER = "name a variant that stock vLLM loads, such as one of 4-bit codes"


def check_steps(manifest: Manifest, name: str, where: str) -> Adapting | None:
    """The adapter's step of a variant, alone there and with another variant's name; None where a variant has none."""
    steps = manifest.variants[name]
    step = adapting_of(steps)
    if step is None:
        return None
    index = list(steps).index(step)
    if len(steps) > 1:
        what = f"{step.method} makes an adapter for another variant, and {len(steps) - 1} other steps stand beside it"
        raise PlanError(
            f"{where}[{index}].method", what, f"give them a variant of their own, and name it in `of:` of {name}"
        )
    _check_name(manifest.variants, name, step, f"{where}[{index}].of")
    source = (step.data if isinstance(step, Lora) else None) or manifest.calibrate
    if isinstance(step, Lora) and source.samples < LEAST:
        raise PlanError(
            f"{where}[{index}].data",
            f"{source.samples} sequence to learn from leaves none to hold out",
            f"use samples: {LEAST} or more here or in calibrate; hundreds are better",
        )
    return step


def _check_name(variants: Mapping[str, Sequence[Step]], name: str, step: Adapting, where: str) -> None:
    names = list(variants)
    others = [other for other, steps in variants.items() if adapting_of(steps) is None]
    if step.of == name:
        raise PlanError(where, f"{name} would be an adapter for itself", f"name another variant{_such_as(others)}")
    if step.of not in variants:
        near = difflib.get_close_matches(step.of, others, n=1)
        fix = f"did you mean `{near[0]}`?" if near else f"name a variant of this manifest{_such_as(others)}"
        raise PlanError(where, f"no variant of this manifest is called {step.of!r}", fix)
    if step.of not in others:
        what = f"{step.of} is an adapter itself, and an engine adds one adapter to a model"
        raise PlanError(where, what, f"name a variant with weights of its own{_such_as(others)}")
    if names.index(step.of) > names.index(name):
        what = f"{step.of} stands below {name}, and variants are made in order"
        raise PlanError(where, what, f"move {step.of} above {name}")


def _such_as(names: Sequence[str]) -> str:
    return f", such as {names[0]}" if names else ""


def check_parent(step: Adapting, parent: VariantPlan, where: str) -> None:
    """The variant that an adapter is for: vLLM adds a LoRA adapter to it, and our own forward pass does the same."""
    where = f"{where}[0].of"
    if parent.config["model_type"] == PER_LAYER or parent.dims.blocks:
        raise PlanError(where, f"layers of {parent.name} differ in width, and there is no LoRA for that in vLLM", OTHER)
    stored = schemes.stored(parent.linears, parent.head)
    if stored.needs_plugin or parent.factored:
        kind = "factors" if parent.factored else "codebooks"
        what = f"vLLM serves the {kind} of {parent.name} by hubplugin's plugin, whose linears take no adapter"
        raise PlanError(where, what, OTHER)
    if any(not scheme.weight_only for scheme in stored.quantized):
        what = f"{parent.name} rounds the inputs of its linears to int8, and an adapter is given them unrounded"
        raise PlanError(where, what, "name a variant without activation_bits")
    if distillation_of(parent.steps):
        what = f"{parent.name} learnt from a teacher, and {step.method} brings a variant nearer to the base"
        raise PlanError(where, what, "name a variant without distill")
    if closed_form_of([step]) and pruning_of(parent.steps):
        what = f"{parent.name} is pruned: its weights have no error against the base's, they have other shapes"
        plain = "use start: zero" if isinstance(step, Lora) else "use method: lora"
        raise PlanError(where, what, f"{plain}, which is trained on the base's predictions")
    if closed_form_of([step]) and all(kind_of(one) is Kind.RECOVER for one in parent.steps):
        raise PlanError(where, f"{parent.name} has no error to correct", OTHER)


def check(step: Adapting, linears: Sequence[LinearPlan], where: str) -> None:
    """The rank against every linear of the blocks, and the kinds of linears that adapters stand beside."""
    for linear in linears:
        if linear.experts:
            raise PlanError(
                where,
                f"{linear.name} is an expert's: vLLM runs all experts of a block as one matrix, and adapters for that "
                "are not written here",
                "use a model without experts",
            )
    least = min(linears, key=lambda linear: min(linear.after))
    if step.rank > min(least.after):
        outputs, inputs = least.after
        raise PlanError(
            f"{where}.rank",
            f"{step.rank} is more than {least.short} has: it is a matrix of {outputs} x {inputs}",
            f"use rank: {min(least.after)} or less",
        )


def label(step: Adapting) -> str:
    """What is made, in few words."""
    return f"{row_of(step).title} of rank {step.rank} for {step.of}"
