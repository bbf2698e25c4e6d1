"""GPTQ (Frantar et al., arXiv 2210.17323): quantize column by column, each feeding its error to the ones not yet done.

Written in the form that needs one Cholesky factor and no inverse (docs/maths.md, GPTQ). Weight in, codes out: knows no
module, no file and no device.
"""

import torch
from torch import Tensor

from hubplugin import hessian as moments
from hubplugin.manifest import Gptq
from hubplugin.methods import grid
from hubplugin.methods.base import Compressed, Grid

CHUNK = 32  # columns that feed each other one by one; what they owe the rest of their group is one product


def compress(weight: Tensor, hessian: Tensor, settings: Gptq, chunk: int = CHUNK) -> Compressed:
    """Quantize weight [outputs, inputs] under second moments [inputs, inputs].

    Computes in float32, or float64 where the weight is float64. `chunk` changes the speed, never the codes.
    With `act_order`, columns are visited by falling second moment inside their group, and groups by their largest one
    (group-aware reordering); columns return to their places, so g_idx stays trivial.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    inputs = work.shape[1]
    group = inputs if settings.group_size == -1 else settings.group_size
    alive, dead = moments.without_dead(hessian.to(work.dtype))
    order = visiting_order(alive.diagonal(), group) if settings.act_order else torch.arange(inputs, device=work.device)
    back = order.argsort()
    factor = moments.factor(alive[order][:, order], settings.damp)
    target = torch.where(dead, 0, work)[:, order]
    codes, scales = _sweep(target, factor, alive.diagonal()[order], group, settings, chunk)
    codes = codes[:, back]
    scales = scales[:, (order[::group] // group).argsort()]
    dense = grid.values(codes, scales.repeat_interleave(group, dim=1), settings.bits)
    return Compressed(
        weight=dense,
        encoding=Grid(codes.to(torch.uint8), scales.to(torch.float16), settings.bits, group),
        loss=moments.relative_loss(work, dense, hessian.to(work.dtype)),
        damp=factor.damp,
        fallback=factor.fallback,
        dead_inputs=int(dead.sum()),
    )


def visiting_order(diagonal: Tensor, group: int) -> Tensor:
    """Column order [inputs]: groups by falling largest entry of `diagonal`, columns falling inside each group."""
    by_group = diagonal.reshape(-1, group)
    inside = by_group.argsort(dim=1, descending=True, stable=True)
    groups = by_group.amax(dim=1).argsort(descending=True, stable=True)
    return (inside + torch.arange(len(by_group), device=diagonal.device)[:, None] * group)[groups].reshape(-1)


def _sweep(
    weight: Tensor, factor: moments.Factor, importance: Tensor, group: int, settings: Gptq, chunk: int
) -> tuple[Tensor, Tensor]:
    """Codes [outputs, inputs] as floats and scales [outputs, groups], in visiting order.

    Works on the transpose, so that a column is contiguous. Left-looking: a group first collects what all earlier
    columns owe it (one product), fits its scales to the fully updated weights, then goes chunk by chunk.
    """
    upper = factor.unit_upper
    columns = weight.T.contiguous()  # [inputs, outputs]
    errors = torch.zeros_like(columns)  # original minus quantized
    codes = torch.empty_like(columns)
    scales = []
    for start in range(0, len(columns), group):
        inside = slice(start, start + group)
        owed = upper[:start, inside].T @ errors[:start]
        scale = grid.fit(
            _fully_updated(columns[inside], owed, upper[inside, inside]).T,
            importance[inside],
            settings.bits,
            settings.clip_search,
        )
        scales.append(scale)
        for first in range(start, start + group, chunk):
            last = min(first + chunk, start + group)
            target = columns[first:last] + owed[first - start : last - start]
            target += upper[start:first, first:last].T @ errors[start:first]
            for column in range(first, last):
                wanted = target[column - first]
                codes[column] = grid.codes(wanted, scale, settings.bits)
                errors[column] = columns[column] - grid.values(codes[column], scale, settings.bits)
                if column + 1 < last:
                    target[column + 1 - first :] += torch.outer(upper[column, column + 1 : last], errors[column])
    return codes.T, torch.stack(scales, dim=1)


def _fully_updated(columns: Tensor, owed: Tensor, upper: Tensor) -> Tensor:
    """The weights [group, outputs] GPTQ would aim at if this group were not quantized at all: W + M^-T owed.

    Scales are fitted to these, not to the original weights: they are what will be snapped.
    """
    return columns + torch.linalg.solve_triangular(upper.T, owed, upper=False, unitriangular=True)
