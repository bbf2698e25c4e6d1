"""SparseGPT (Frantar, Alistarh, arXiv 2301.00774): set weights to zero, the rest of their row compensates.

GPTQ's sweep with zero for a grid, in the form that needs one Cholesky factor and no inverse (docs/maths.md, Masks).
Weight in, weight out: knows no module, no file and no device.
"""

import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import Masked
from hubplugin.manifest.steps.masks import SparseGpt
from hubplugin.methods import linear_algebra
from hubplugin.methods.base import Compressed
from hubplugin.methods.gptq.loop import fully_updated
from hubplugin.methods.linear_algebra import Factor
from hubplugin.methods.selection import lowest

BLOCK = 128  # columns whose zeros are chosen together, and that feed each other one by one


def prepare(hessian: Tensor, settings: SparseGpt) -> Factor:
    """Factor second moments [inputs, inputs] of the dtype to compute in; linears that share an input share it."""
    return linear_algebra.factor(linear_algebra.without_dead(hessian)[0], settings.damp)


def compress(weight: Tensor, hessian: Tensor, settings: SparseGpt, prepared: Factor | None = None) -> Compressed:
    """Set weights of [outputs, inputs] to zero under second moments [inputs, inputs] and update the others.

    Of each block of columns the weights go that cost least, D_k w_k^2, whichever output they are of; or, of every m
    columns, m - n of each output. Inputs never excited cost nothing and go first; what is kept of them stays as it is.
    `prepared` is `prepare`'s for the same second moments and damping, if it is known already. Computes in float32,
    or float64 where the weight is float64.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    matrix = hessian.to(work.dtype)
    dead = matrix.diagonal() <= 0
    factor = prepared or prepare(matrix, settings)
    updated, zeroed = _sweep(work.T.contiguous(), factor, factor.diagonal.masked_fill(dead, 0), settings)
    dense = updated.T.contiguous()
    return Compressed(
        weight=dense,
        encoding=Masked(~zeroed.T),
        loss=linear_algebra.relative_loss(work, dense, matrix),
        damp=factor.damp,
        fallback=factor.fallback,
        dead_inputs=int(dead.sum()),
    )


def _sweep(columns: Tensor, factor: Factor, prices: Tensor, settings: SparseGpt) -> tuple[Tensor, Tensor]:
    """The updated weights and the mask of those that are zero, both [inputs, outputs] as `columns`.

    Left-looking, as GPTQ's: a block first collects the error feedback of all earlier columns (one product). A run of
    columns whose zeros are chosen together, the block or m columns of it, sees weights fully updated by all before it.
    """
    upper, group = factor.unit_upper, settings.kept[1] if settings.kept else BLOCK
    block = BLOCK - BLOCK % group  # whole runs
    errors = torch.zeros_like(columns)  # original minus new
    zeroed = torch.zeros_like(columns, dtype=torch.bool)
    for start in range(0, len(columns), block):
        stop = min(start + block, len(columns))
        feedback = upper[:start, start:stop].T @ errors[:start]
        for first in range(start, stop, group):
            last = min(first + group, stop)
            inner = feedback[first - start : last - start] + upper[start:first, first:last].T @ errors[start:first]
            updated = fully_updated(columns[first:last], inner, upper[first:last, first:last])
            zeroed[first:last] = _chosen(updated.square() * prices[first:last, None], settings)
            for column in range(first, last):
                update = inner[column - first] + upper[first:column, column] @ errors[first:column]
                errors[column] = torch.where(zeroed[column], columns[column], -update)
    return columns - errors, zeroed


def _chosen(costs: Tensor, settings: SparseGpt) -> Tensor:
    """Mask of the zeros among columns that are chosen together, from their costs [columns, outputs]."""
    if settings.kept:
        kept, group = settings.kept
        return lowest(costs, group - kept, dim=0)
    return lowest(costs.reshape(-1), round(settings.ratio * costs.numel()), dim=0).reshape(costs.shape)
