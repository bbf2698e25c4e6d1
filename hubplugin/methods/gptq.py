"""GPTQ (Frantar et al., arXiv 2210.17323): quantize column by column, each feeding its error to the ones not yet done.

Written in the form that needs one Cholesky factor and no inverse (docs/maths.md, GPTQ). Weight in, codes out: knows no
module, no file and no device.
"""

import torch
from torch import Tensor

from hubplugin import hessian as moments
from hubplugin.manifest import Gptq
from hubplugin.methods import grid, sweep, sweep_cpu
from hubplugin.methods.base import Compressed, Grid
from hubplugin.methods.sweep import Swept


def compress(weight: Tensor, hessian: Tensor, settings: Gptq) -> Compressed:
    """Quantize weight [outputs, inputs] under second moments [inputs, inputs].

    Computes in float32, or float64 where the weight is float64.
    With `act_order`, columns are visited by falling second moment inside their group, and groups by their largest one
    (group-aware reordering); columns return to their places, so g_idx stays trivial.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    inputs = work.shape[1]
    spec = spec_of(settings, inputs)
    group = spec.group_size
    alive, dead = moments.without_dead(hessian.to(work.dtype))
    order = visiting_order(alive.diagonal(), group) if settings.act_order else torch.arange(inputs, device=work.device)
    back = order.argsort()
    factor = moments.factor(alive[order][:, order], settings.damp)
    target = torch.where(dead, 0, work)[:, order].T.contiguous()
    swept = _sweep(target, factor, alive.diagonal()[order], spec)
    groups = (order[::group] // group).argsort()
    codes, scales, zeros = swept.codes[back].T, swept.scales[groups].T, swept.zeros[groups].T
    dense = grid.values(codes, scales.repeat_interleave(group, dim=1), zeros.repeat_interleave(group, dim=1))
    return Compressed(
        weight=dense,
        encoding=Grid(
            codes.contiguous(),
            scales.to(torch.float16),
            spec.bits,
            group,
            None if spec.symmetric else zeros.to(torch.uint8),
        ),
        loss=moments.relative_loss(work, dense, hessian.to(work.dtype)),
        damp=factor.damp,
        fallback=factor.fallback,
        dead_inputs=int(dead.sum()),
    )


def _sweep(columns: Tensor, factor: moments.Factor, importance: Tensor, spec: grid.Spec) -> Swept:
    """The fastest sweep there is for these columns."""
    if columns.dtype == torch.float64 or columns.device.type != "cpu":
        return sweep.sweep(columns, factor, importance, spec)
    return sweep_cpu.sweep(columns, factor, importance, spec)


def spec_of(settings: Gptq, inputs: int) -> grid.Spec:
    """The grid that settings ask for."""
    group = inputs if settings.group_size == -1 else settings.group_size
    return grid.Spec(settings.bits, group, shares=grid.SHRINK if settings.clip_search else ())


def visiting_order(diagonal: Tensor, group: int) -> Tensor:
    """Column order [inputs]: groups by falling largest entry of `diagonal`, columns falling inside each group."""
    by_group = diagonal.reshape(-1, group)
    inside = by_group.argsort(dim=1, descending=True, stable=True)
    groups = by_group.amax(dim=1).argsort(descending=True, stable=True)
    return (inside + torch.arange(len(by_group), device=diagonal.device)[:, None] * group)[groups].reshape(-1)
