"""Checks of sizes that a report states: counted again from the tensors, and of the base from its headers."""

from collections.abc import Iterator
from math import isclose
from typing import Any

from hubplugin import report
from hubplugin.checkpoint import safetensors_io
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.evaluation import zeros
from hubplugin.evaluation.cards import steps
from hubplugin.evaluation.metrics import SIZES, Metric
from hubplugin.manifest.methods import METHODS, Kind
from hubplugin.manifest.steps.masks import Masking
from hubplugin.model.architectures import families, tied_head
from hubplugin.plan import base as base_model
from hubplugin.plan import schemes
from hubplugin.plan import sizes as weights
from hubplugin.plan.checks import masks
from hubplugin.plan.costs import operations
from hubplugin.verification import claims, stored_linears
from hubplugin.verification.outcome import Finding, compared, failed, number, passed, unchecked
from hubplugin.verification.subject import CONFIG, Subject

EXACT = 1e-9  # relative, of a ratio that was written as a decimal number


def of_variant(subject: Subject) -> Iterator[Finding]:
    """Bytes, parameters, bits per weight and sparsity, counted from the tensors."""
    if subject.report:
        found = measured(subject)
        yield from _same((metric for metric in SIZES if metric.key != "disk_ratio"), subject.report.sizes, found)


def of_base(subject: Subject) -> Iterator[Finding]:
    """The same of the base by its headers, and how much smaller the variant is."""
    if subject.report is None:
        return
    found, reported = measured_base(subject), subject.report.sizes_base
    yield from _same((metric for metric in SIZES if not metric.relative), reported, found)
    said, counted = subject.report.disk_ratio, found.safetensors_bytes / _bytes(subject)
    yield compared(number(said), number(counted), "disk ratio", holds=isclose(said, counted, rel_tol=EXACT))


def _same(metrics: Iterator[Metric[report.Sizes]], claimed: report.Sizes, found: report.Sizes) -> Iterator[Finding]:
    for metric in metrics:
        said, counted = metric.value(claimed, claimed), metric.value(found, found)
        if said is None:
            continue
        if counted is None:
            yield unchecked("this release does not count it again", metric.label, str(said))
        else:
            claim, count = (number(value, metric.unit) for value in (said, counted))
            yield compared(claim, count, metric.label, holds=isclose(said, counted, rel_tol=EXACT))


def _bytes(subject: Subject) -> int:
    """Of the files that hold the folder's weights. Raises CheckpointError where one is missing."""
    _ = subject.reader
    return safetensors_io.safetensors_bytes(subject.folder)


def measured(subject: Subject) -> report.Sizes:
    """Of the folder's tensors."""
    linears = [subject.linears[name] for name in subject.block_linears]
    shapes = stored_linears.dense_shapes(subject.reader, subject.linears)
    headers, plans = subject.reader.headers, [linear.plan for linear in linears]
    parameters = weights.parameters(weights.with_factors(shapes, headers))
    weight = weights.measure(headers, plans, parameters)
    masked = subject.report is not None and steps.step_of(subject.report, Kind.MASK) is not None
    return report.Sizes(
        safetensors_bytes=_bytes(subject),
        parameters=parameters,
        linear_parameters=weights.linear_weights(headers, plans),
        linear_bits_per_weight=weight.linear_bits_per_weight,
        model_bits_per_weight=weight.model_bits_per_weight,
        sparsity=zeros.sparsity(DenseView(subject.folder), subject.block_linears) if masked else None,
        **(
            _flops(operations.of(subject.family, subject.dims, subject.config, subject.reader.headers))
            if subject.family and subject.dims
            else {}
        ),
    )


def measured_base(subject: Subject) -> report.Sizes:
    """Of the base's headers. A head counts where the variant has one: its values decide that, not config.json."""
    peek, where = subject.base.peek, subject.base.peek.repo
    untied = not tied_head.is_tied(subject.config)
    config = {**peek.config, "tie_word_embeddings": False} if untied else peek.config
    read = base_model.read(where, families.match(config, where), config, peek.tensors)
    linears = weights.linears(read.family, read.dims, read.dims, {})
    weight = weights.measure(read.tensors, linears, read.parameters)
    return report.Sizes(
        safetensors_bytes=subject.base.weights_bytes,
        parameters=read.parameters,
        linear_parameters=read.linear_parameters,
        linear_bits_per_weight=weight.linear_bits_per_weight,
        model_bits_per_weight=8 * read.bytes / read.parameters,
        **_flops(operations.of(read.family, read.dims, read.config)),
    )


def _flops(work: operations.Operations) -> dict[str, Any]:
    return {"flops_per_token": work.per_token, "flops_per_context_token": work.context}


def zeros_as_asked(subject: Subject) -> Iterator[Finding]:
    """Every linear has at least as many zeros as the report's mask asks for, in its pattern."""
    said = steps.step_of(subject.report, Kind.MASK) if subject.report else None
    if said is None:
        return
    step, view, checked = METHODS[said["method"]].settings.model_validate(said), DenseView(subject.folder), 0
    assert isinstance(step, Masking)
    for name in subject.block_linears:
        if not schemes.is_ignored(step, name):
            weight = view.get(f"{name}.weight")
            checked += 1
            # of more zeros than asked for, some may be the base's; `sizes` counts them all
            if fault := zeros.fault(weight, step, before=weight.numel()):
                yield failed(fault, name)
                return
    yield passed(f"{masks.label(step)} in each of {checked} linears")


def shape(subject: Subject) -> Iterator[Finding]:
    """The class and the widths that the report says are those of config.json, and all tensors have these shapes."""
    made = subject.report
    if made is None:
        return
    if made.architecture:
        yield compared(made.architecture, (subject.config.get("architectures") or ["none"])[0], "class")
    for key, (_, after) in made.widths.items():
        if key in subject.config:
            yield compared(after, subject.config[key], key)
        else:
            yield unchecked(f"{CONFIG} has no such key", key, str(after))


def in_card(subject: Subject) -> Iterator[Finding]:
    """Sizes that the front matter of a card that is not ours names."""
    if subject.report:
        return
    for size in claims.sizes(subject.card.metadata):
        found: Any = measured(subject)
        counted = found.safetensors_bytes if size.in_bytes else found.parameters
        yield compared(size.written, counted, size.key, holds=size.holds(counted))
