"""GPTQ (Frantar et al., arXiv 2210.17323): quantize column by column, each feeding its error to the later ones.

Written in the form that needs one Cholesky factor and no inverse (docs/maths.md, GPTQ). Weight in, codes out: knows no
module, no file and no device.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hubplugin.checkpoint import encodings
from hubplugin.checkpoint.encodings import Grid
from hubplugin.kernels import transposes
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.manifest.steps.quantization import Quantization
from hubplugin.methods import linear_algebra
from hubplugin.methods.base import Compressed
from hubplugin.methods.gptq import (
    coordinate_descent,
    coordinate_descent_cpu,
    grid,
    loop,
    loop_cpu,
    two_sided,
    two_sided_cpu,
)
from hubplugin.methods.gptq.loop import Swept
from hubplugin.methods.gptq.two_sided import OutputFactor, Stacked
from hubplugin.methods.linear_algebra import Prepared


def prepare(hessian: Tensor, settings: Quantization) -> Prepared:
    """Order and factor second moments [inputs, inputs] of the dtype to compute in."""
    inputs = len(hessian)
    group = settings.group(inputs)
    alive, dead = linear_algebra.without_dead(hessian)
    order = visiting_order(alive.diagonal(), group) if settings.act_order else torch.arange(inputs, device=alive.device)
    return Prepared(alive, dead, order, linear_algebra.factor(alive, settings.damp, order))


def compress(
    weight: Tensor,
    hessian: Tensor,
    settings: GridQuantization,
    prepared: Prepared | None = None,
    outputs: Sequence[OutputFactor] = (),
) -> Compressed:
    """Quantize weight [outputs, inputs] under second moments [inputs, inputs].

    `outputs` are the factors of the linears stacked in `weight`, if errors are to be fed from output to output.
    Computes in float32, or float64 where the weight is float64. `prepared` is `prepare`'s for the same second moments,
    group size, order and damping, if it is known already.
    With `act_order`, columns are visited by falling second moment inside their group, and groups by their largest one
    (group-aware reordering); columns return to their places, so g_idx stays trivial.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    spec = spec_of(settings, work.shape[1])
    group = spec.group_size
    shared = prepared or prepare(hessian.to(work.dtype), settings)
    order, factor = shared.order, shared.factor
    if bool(shared.dead.any()):
        work = work.masked_fill(shared.dead, 0)
    columns = to_columns(work, order)
    importance = shared.alive.diagonal()[order]
    if outputs:
        swept = _two_sided(columns, factor, importance, spec, Stacked.of(outputs))
    else:
        swept = _sweep(columns, factor, importance, spec)
    if settings.passes:
        _descend(columns, swept, shared, settings, spec.top)
    del columns
    groups = (order[::group] // group).argsort()
    codes, scales, zeros = to_rows(swept.codes, order), swept.scales[groups].T, swept.zeros[groups].T
    del swept
    dense = encodings.expanded(codes, scales, zeros)
    return Compressed(
        weight=dense,
        encoding=Grid(
            codes,
            scales.to(torch.float16),
            spec.bits,
            group,
            None if spec.symmetric else zeros.to(torch.uint8),
        ),
        loss=linear_algebra.relative_loss(work, dense, hessian.to(work.dtype)),
        damp=factor.damp,
        fallback=factor.fallback,
        dead_inputs=int(shared.dead.sum()),
    )


def _sweep(columns: Tensor, factor: linear_algebra.Factor, importance: Tensor, spec: grid.Spec) -> Swept:
    """By the fastest implementation for these columns."""
    if columns.is_cuda and columns.dtype == torch.float32:
        from hubplugin.methods.gptq import loop_cuda  # Triton is there where CUDA is

        return loop_cuda.sweep(columns, factor, importance, spec)
    sweep = loop_cpu.sweep if on_cpu(columns) else loop.sweep
    return sweep(columns, factor, importance, spec)


def _two_sided(
    columns: Tensor, factor: linear_algebra.Factor, importance: Tensor, spec: grid.Spec, stacked: Stacked
) -> Swept:
    """A sweep that feeds errors across outputs too, with the outputs in their places. For a GPU the CPU does it."""
    if columns.is_cuda:
        moved = replace(factor, unit_upper=factor.unit_upper.cpu(), diagonal=factor.diagonal.cpu())
        made = _two_sided(columns.cpu(), moved, importance.cpu(), spec, stacked.cpu())
        return Swept(*(part.to(columns.device) for part in (made.codes, made.scales, made.zeros)))
    ordered = columns.index_select(1, stacked.order)
    sweep = two_sided_cpu.sweep if on_cpu(columns) else two_sided.sweep
    return two_sided.in_places(sweep(ordered, factor, importance, spec, stacked), stacked)


def on_cpu(columns: Tensor) -> bool:
    """Whether the kernels for CPUs take these columns; else plain torch does."""
    return columns.device.type == "cpu" and columns.dtype == torch.float32


def _descend(columns: Tensor, swept: Swept, shared: Prepared, settings: GridQuantization, top: int) -> None:
    """Improve the result of a sweep, in place, as often as the settings say."""
    damped = linear_algebra.damped(shared.alive, shared.factor.damp)
    hessian = damped.index_select(0, shared.order).index_select(1, shared.order)
    del damped
    descend = coordinate_descent_cpu.descend if on_cpu(columns) else coordinate_descent.descend
    for _ in range(settings.passes):
        descend(columns, hessian, swept, top, settings.descent > 0, settings.scale_refit)


def to_columns(weight: Tensor, order: Tensor) -> Tensor:
    """Columns [inputs, outputs] of weight [outputs, inputs] in the order in which they are visited."""
    if weight.device.type == "cpu":
        return transposes.to_columns(weight.contiguous(), order)
    return weight.T[order]


def to_rows(columns: Tensor, order: Tensor) -> Tensor:
    """What undoes `to_columns`, contiguous."""
    if columns.device.type == "cpu":
        return transposes.to_rows(columns, order)
    return columns[order.argsort()].T.contiguous()


def spec_of(settings: GridQuantization, inputs: int) -> grid.Spec:
    """The grid that settings ask for."""
    group = settings.group(inputs)
    return grid.Spec(settings.bits, group, settings.symmetric, _shares(settings, group))


def _shares(settings: GridQuantization, group: int) -> tuple[float, ...]:
    if not settings.clip_search:
        return ()
    shares = grid.shrinking(settings.bits, group)
    mirrored = settings.signed_scales and settings.symmetric
    return shares + (tuple(-share for share in shares) if mirrored else ())


def visiting_order(diagonal: Tensor, group: int) -> Tensor:
    """Column order [inputs]: groups by falling largest entry of `diagonal`, columns falling inside each group."""
    by_group = diagonal.reshape(-1, group)
    inside = by_group.argsort(dim=1, descending=True, stable=True)
    groups = by_group.amax(dim=1).argsort(descending=True, stable=True)
    return (inside + torch.arange(len(by_group), device=diagonal.device)[:, None] * group)[groups].reshape(-1)
