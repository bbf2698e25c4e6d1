"""Manifest + tensor headers + family -> Plan: what every variant will look like, before a weight is read.

Every cross-check between the manifest and the model is made here, before any work. It reads no weights,
opens no file and knows no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

from hubplugin.checkpoint.format_names import GPTQ
from hubplugin.checkpoint.headers import Header
from hubplugin.errors import PlanError
from hubplugin.manifest.gptq import Quantization
from hubplugin.manifest.methods import mask_of, pruning_of
from hubplugin.manifest.prune import Prune
from hubplugin.manifest.schema import Document, Step
from hubplugin.model import architecture, families, pruned_config
from hubplugin.model.architecture import Dimensions
from hubplugin.model.families import Family
from hubplugin.plan import estimates, masks, schemes, sizes, validation, vllm_support, workload
from hubplugin.plan.choices import mixed_precision, pruning_space
from hubplugin.plan.choices.mixed_precision import Budget
from hubplugin.plan.choices.pruning_space import Shape, Space
from hubplugin.plan.schemes import LinearPlan, Scheme
from hubplugin.plan.variant_plan import Plan, VariantPlan
from hubplugin.plan.vllm_support import Verdict


@dataclass(frozen=True)
class _Base:
    """What all variants of a plan share."""

    model_type: str
    family: Family
    config: dict[str, Any]  # config.json
    dims: Dimensions
    tensors: dict[str, Header]  # of the forward pass, leftovers dropped
    bytes: int  # leftovers included


def make(
    document: Document,
    config: Mapping[str, Any],
    tensors: Mapping[str, Header],
    *,
    revision: str | None = None,
) -> Plan:
    """Plan every variant from the base's parsed config.json and its safetensors headers, by tensor name.

    Pure: no file, no network. Raises FamilyError for an unknown architecture, and PlanError for everything
    else that the manifest and this model cannot do together.
    """
    manifest = document.manifest
    base = _base(manifest.model, config, tensors)
    row, dims, used = base.family, base.dims, base.tensors
    validation.sources(document, dims)
    if manifest.publish is not None:
        validation.repo_names(document)
    return Plan(
        model=manifest.model,
        revision=revision,
        model_type=base.model_type,
        config=base.config,
        tensors=dict(tensors),
        parameters=sum(header.count for header in used.values()),
        linear_parameters=sizes.linear_parameters(row, dims),
        bytes=base.bytes,
        variants=tuple(_variant(document, name, steps, base) for name, steps in manifest.variants.items()),
        notes=document.notes,
    )


def _base(model: str, config: Mapping[str, Any], tensors: Mapping[str, Header]) -> _Base:
    where = f"{model}/config.json"
    row = families.match(dict(config), where)
    validation.text_model(config, where)
    dims = architecture.dimensions(config, row, where)
    used = architecture.check(tensors, architecture.expected(config, row, dims), row, model)
    stored = sum(header.bytes for header in tensors.values())
    return _Base(config["model_type"], row, dict(config), dims, used, stored)


def part(
    document: Document,
    config: Mapping[str, Any],
    tensors: Mapping[str, Header],
    variant: VariantPlan,
    steps: Sequence[Step],
) -> VariantPlan:
    """Some steps of a decided variant, done to a model of this config.json and these headers.

    With the pruning step that model is the base, without it what pruning has made.
    """
    base = _base(variant.name, config, tensors)
    prunes = pruning_of(steps) is not None
    shape = Shape(variant.sources, variant.dims.shapes()) if prunes else pruning_space.unchanged(base.dims)
    return _variant(document, variant.name, tuple(steps), base, shape=shape)


def decided(
    document: Document,
    plan: Plan,
    name: str,
    chosen: Mapping[str, Scheme] | None = None,
    shape: Shape | None = None,
) -> VariantPlan:
    """The variant of a plan once measurements have decided what it left open.

    `chosen` are the schemes of linears that a budget was spent on, by path; `shape` is what pruning leaves.
    """
    base = _base(plan.model, plan.config, plan.tensors)
    return _variant(document, name, document.manifest.variants[name], base, chosen, shape)


def _variant(
    document: Document,
    name: str,
    steps: tuple[Step, ...],
    base: _Base,
    chosen: Mapping[str, Scheme] | None = None,
    shape: Shape | None = None,
) -> VariantPlan:
    where = f"{document.path}: variants.{name}"
    prune, gptq = validation.order(steps, where)
    last = f"{where}[{len(steps) - 1}]"
    validation.experts(prune, gptq, base.family, where)
    found = _schemes(gptq, prune, base, base.dims, last) if gptq else {}
    space = _space(prune, found, base, f"{where}[0]") if prune and shape is None else None
    own = shape or (space.before_measuring(_outside(base)) if space else pruning_space.unchanged(base.dims))
    dims = own.dimensions(base.dims)
    if gptq and dims != base.dims:
        found = _schemes(gptq, prune, base, dims, last)
    limit = _budget(gptq, found, base, last) if gptq else None
    found = {**found, **(limit.before_measuring() if chosen is None else chosen)} if limit else found
    config = pruned_config.config(base.config, base.family, base.dims, dims, own.sources, f"{where}[0]")
    config |= validation.biases(prune, config, f"{where}[0].bias")
    row = families.match(config, where)
    linears = sizes.linears(base.family, base.dims, dims, found, own.sources)
    if mask := mask_of(steps):
        masks.check(mask, linears, last)
    head = _head(found, base)
    quantized = linears if head is None else (*linears, head)
    validation.packing(quantized, last)
    validation.fused(quantized, last)
    dense = architecture.expected(config, row, dims)
    tensors = sizes.tensors(dense, sizes.stored(dense, base.tensors, base.family, own.sources), quantized)
    weight = sizes.measure(tensors, linears, sizes.parameters(dense))
    verdicts = _verdicts(config["model_type"], dims, quantized, limit if chosen is None else None)
    _loads_somewhere(verdicts, gptq, where)
    units = len(limit.units) if limit else space.probes if space else 0
    work = workload.of(document, base.family, base.dims, base.tensors, steps, units)
    shapes, sampled = architecture.linear_shapes(base.family, base.dims), document.manifest.calibrate.self_ * base.bytes
    return VariantPlan(
        name=name,
        steps=tuple(_resolved(gptq, linears, found) if gptq and step is gptq else step for step in steps),
        widths=sizes.changed(base.dims, dims),
        dims=dims,
        sources=own.sources,
        config=config,
        linears=linears,
        head=head,
        tensors=tensors,
        parameters=sizes.parameters(dense),
        linear_parameters=sizes.linear_parameters(row, dims),
        bytes=weight.bytes,
        linear_bits_per_weight=weight.linear_bits_per_weight,
        model_bits_per_weight=weight.model_bits_per_weight,
        memory=estimates.memory(base.family, base.dims, shapes, work, sampled),
        seconds=estimates.seconds(base.family, base.dims, shapes, work),
        verdicts=verdicts,
        budget=limit,
        space=space if prune and prune.measures else None,
        notes=masks.notes(mask) + vllm_support.notes(config["model_type"], space is not None and space.per_layer),
    )


def _space(prune: Prune, found: Mapping[str, Scheme | None], base: _Base, where: str) -> Space:
    """What a step leaves to measurements; where it names counts, one choice of widths and heads."""
    validation.prunable(base.family, base.model_type, where)
    channels, columns = (_group(found, base.family.width(name).consumer) for name in ("ffn", "heads"))
    if any(getattr(prune, key) is not None for key in Prune.targets):
        every = pruning_space.heads(base.dims, columns if columns > 1 else None)
        taken = pruned_config.taken(prune, base.config, base.family, base.dims, every, where)
        widths = pruning_space.widths(base.dims.ffn, channels, prune.layout == "per-layer")
        space = Space(prune, base.family, base.dims, widths, taken)
        validation.reachable(space, _outside(base), where)
        return space
    ffn = (
        base.dims.ffn if prune.ffn is None else validation.kept_ffn(prune.ffn, channels, base.dims.ffn, f"{where}.ffn")
    )
    kept = validation.kept_heads(prune, base.dims, columns, where)
    validation.depth(prune, base.dims.layers, where)
    return Space(prune, base.family, base.dims, (ffn,), (kept,))


def _outside(base: _Base) -> int:
    """Parameters outside the linears that pruning works on."""
    every = sum(header.count for header in base.tensors.values())
    return every - sizes.linear_parameters(base.family, base.dims)


def _verdicts(
    model_type: str, dims: Dimensions, linears: Sequence[LinearPlan], open_budget: Budget | None
) -> tuple[Verdict, ...]:
    """What loads the variant; before a budget is spent, what loads it whatever is chosen."""
    found = vllm_support.verdicts(model_type, dims, linears)
    for chosen in open_budget.corners() if open_budget else ():
        other = [replace(linear, scheme=chosen.get(linear.name, linear.scheme)) for linear in linears]
        worse = vllm_support.verdicts(model_type, dims, other)
        found = tuple(one if two.loads else two for one, two in zip(found, worse, strict=True))
    return found


def _loads_somewhere(verdicts: Sequence[Verdict], gptq: Quantization | None, where: str) -> None:
    if not any(verdict.loads for verdict in verdicts):
        whys = "; ".join(dict.fromkeys(verdict.why for verdict in verdicts))
        fix = "use format: compressed-tensors, or leave it out" if gptq and gptq.format == GPTQ else "use another model"
        raise PlanError(where, f"stock vLLM loads it nowhere: {whys}", f"{fix}, or other bits")


def _resolved(step: Quantization, linears: Sequence[LinearPlan], found: Mapping[str, Scheme | None]) -> Quantization:
    """The step with the format it gets, and with what most linears get of a budget: the card names that."""
    known: dict[str, Any] = {"format": schemes.format_of(found.values())}
    if step.budget:
        usual = schemes.distinct(linear.scheme for linear in linears)[0]
        known |= {"bits": usual.bits, "group_size": usual.group_size, "symmetric": usual.symmetric}
    return step.model_copy(update=known)


def _budget(gptq: Quantization, found: Mapping[str, Scheme | None], base: _Base, where: str) -> Budget | None:
    if gptq.budget is None:
        return None
    linears = sizes.linears(base.family, base.dims, base.dims, found)
    head = _head(found, base)
    dense = architecture.expected(base.config, base.family, base.dims)
    return mixed_precision.make(gptq, (*linears, *([head] if head else [])), dense, base.tensors, where)


def _schemes(
    gptq: Quantization, prune: Prune | None, base: _Base, dims: Dimensions, where: str
) -> dict[str, Scheme | None]:
    """Every linear's scheme by its full path, the head's among them where the step asks for it.

    Linears are those of a model of the sizes `dims`.
    """
    validation.engine(gptq, prune, base.model_type, where)
    validation.head(gptq, base.family, base.dims, where)
    names = sizes.names(base.family, dims) + ([base.family.head] if gptq.lm_head else [])
    validation.patterns(gptq, names, where)
    found = schemes.resolve(gptq, names, base.dims.vocab)
    validation.grids(gptq, found, where)
    validation.budget(gptq, prune, found, where)
    return found


def _head(found: Mapping[str, Scheme | None], base: _Base) -> LinearPlan | None:
    scheme = found.get(base.family.head)
    shape = (base.dims.vocab, base.dims.hidden)
    return LinearPlan(base.family.head, base.family.head, shape, shape, scheme) if scheme else None


def _group(found: Mapping[str, Scheme | None], consumer: str) -> int:
    """The step that pruned widths keep for the sake of groups: whole groups for their consumer in every block."""
    own = (scheme for name, scheme in found.items() if name.endswith(f".{consumer}") and scheme)
    return lcm(*(scheme.group_size for scheme in own if scheme.group_size > 0))
