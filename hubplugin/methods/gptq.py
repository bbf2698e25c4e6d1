"""GPTQ (Frantar et al., arXiv 2210.17323): quantize column by column, each feeding its error to the ones not yet done.

Written in the form that needs one Cholesky factor and no inverse (docs/maths.md, GPTQ). Weight in, codes out: knows no
module, no file and no device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hubplugin import hessian as moments
from hubplugin.hessian import Drift
from hubplugin.manifest import Gptq
from hubplugin.methods import grid, sweep, sweep_cpu
from hubplugin.methods.base import Compressed, Grid
from hubplugin.methods.sweep import Swept


@dataclass(frozen=True)
class Prepared:
    """What all grids of one group size share: the visiting order and its factor."""

    alive: Tensor  # second moments [inputs, inputs], with 1 on the diagonal of dead inputs
    dead: Tensor  # bool [inputs]
    order: Tensor  # int64 [inputs]
    factor: moments.Factor


def prepare(hessian: Tensor, settings: Gptq) -> Prepared:
    """Order and factor second moments [inputs, inputs] of the dtype to compute in."""
    inputs = len(hessian)
    group = spec_of(settings, inputs).group_size
    alive, dead = moments.without_dead(hessian)
    order = visiting_order(alive.diagonal(), group) if settings.act_order else torch.arange(inputs, device=alive.device)
    return Prepared(alive, dead, order, moments.factor(alive[order[:, None], order], settings.damp))


def compress(weight: Tensor, hessian: Tensor, settings: Gptq, prepared: Prepared | None = None) -> Compressed:
    """Quantize weight [outputs, inputs] under second moments [inputs, inputs].

    Computes in float32, or float64 where the weight is float64. `prepared` is `prepare`'s for the same second moments,
    group size, order and damping, where there is one already.
    With `act_order`, columns are visited by falling second moment inside their group, and groups by their largest one
    (group-aware reordering); columns return to their places, so g_idx stays trivial.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    spec = spec_of(settings, work.shape[1])
    group = spec.group_size
    ready = prepared or prepare(hessian.to(work.dtype), settings)
    order, factor = ready.order, ready.factor
    back = order.argsort()
    target = work.T[order]
    target[ready.dead[order]] = 0
    swept = _sweep(target, factor, ready.alive.diagonal()[order], spec)
    groups = (order[::group] // group).argsort()
    dense = target  # its memory: no sweep is to come
    for number, inside in enumerate(order.split(group)):
        code = swept.codes[number * group : (number + 1) * group]
        dense[inside] = grid.values(code, swept.scales[number], swept.zeros[number])
    dense = dense.T
    codes, scales, zeros = swept.codes[back].T, swept.scales[groups].T, swept.zeros[groups].T
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
        dead_inputs=int(ready.dead.sum()),
    )


def corrected(
    weight: Tensor, source: Tensor, fit: tuple[Tensor, Drift], check: tuple[Tensor, Drift] | None, damp: float
) -> tuple[Tensor, float]:
    """The weight to quantize instead of W, so that errors made upstream are made up for, and how much of it was taken.

    Quantization error propagation (QEP, arXiv 2504.09629): T = W + a D with D = sum (y~ - W x) x^T (H + damping)^-1,
    the least-squares answer to outputs y~ of the base. D comes from the tokens of `fit`; a is what is best on those
    of `check`, in closed form and between 0 and 1, or 0.5 without any. Each is second moments [inputs, inputs] and a
    drift; `weight` [outputs, inputs] is what gets x, `source` [outputs, inputs of the base] what made y~.
    """
    hessian, drift = fit
    step = moments.solve(moments.damped(hessian, damp), drift.owed(weight, source, hessian), "target correction")
    share = 0.5
    if check is not None:
        seen, other = check
        gain, size = moments.inner(other.owed(weight, source, seen), step), moments.energy(step, seen)
        share = min(max(gain / size, 0.0), 1.0) if size > 0 else 0.0
    return weight + share * step, share


def _sweep(columns: Tensor, factor: moments.Factor, importance: Tensor, spec: grid.Spec) -> Swept:
    """The fastest sweep there is for these columns."""
    if columns.is_cuda and columns.dtype == torch.float32:
        from hubplugin.methods import sweep_gpu  # Triton is there where CUDA is

        return sweep_gpu.sweep(columns, factor, importance, spec)
    if columns.dtype == torch.float64 or columns.device.type != "cpu":
        return sweep.sweep(columns, factor, importance, spec)
    return sweep_cpu.sweep(columns, factor, importance, spec)


def spec_of(settings: Gptq, inputs: int) -> grid.Spec:
    """The grid that settings ask for."""
    group = inputs if settings.group_size == -1 else settings.group_size
    return grid.Spec(settings.bits, group, settings.symmetric, _shares(settings))


def _shares(settings: Gptq) -> tuple[float, ...]:
    if not settings.clip_search:
        return ()
    mirrored = settings.signed_scales and settings.symmetric
    return grid.SHRINK + (tuple(-share for share in grid.SHRINK) if mirrored else ())


def visiting_order(diagonal: Tensor, group: int) -> Tensor:
    """Column order [inputs]: groups by falling largest entry of `diagonal`, columns falling inside each group."""
    by_group = diagonal.reshape(-1, group)
    inside = by_group.argsort(dim=1, descending=True, stable=True)
    groups = by_group.amax(dim=1).argsort(descending=True, stable=True)
    return (inside + torch.arange(len(by_group), device=diagonal.device)[:, None] * group)[groups].reshape(-1)
