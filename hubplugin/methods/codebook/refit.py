"""Centroids refitted to their codes: the least squares of the layer's output, all codebooks of a row together.

For fixed codes a row is w' = P c, P a matrix of zeros and ones, and tr((W - W') H (W - W')^T) is quadratic in c. Its
normal equations P^T H P c = P^T H w are solved by conjugate gradients, which need products with H alone, every one of
them for all rows at once; P^T H P is never formed. Knows second moments and levels; no order of columns and no file.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hubplugin.methods.codebook import kmeans, loop
from hubplugin.methods.codebook.loop import Swept

ITERATIONS = 8
OUTPUTS = 2048  # rows that are refitted at a time: an index of 8 bytes per weight is made of their codes


def refit(columns: Tensor, hessian: Tensor, swept: Swept) -> tuple[Swept, Tensor]:
    """Better levels for the codes of a sweep of columns [inputs, outputs], and each output's loss [outputs].

    `hessian` [inputs, inputs] are the second moments that the sweep followed, damping included, in its order. A row
    whose loss would rise, because levels are rounded to what is stored, keeps its levels.
    """
    levels, losses = swept.levels.clone(), []
    for first in range(0, columns.shape[1], OUTPUTS):
        rows = slice(first, first + OUTPUTS)
        losses.append(_refit(columns[:, rows], hessian, swept.codes[:, rows], levels[:, rows]))
    return Swept(swept.codes, levels), torch.cat(losses)


def loss_of(columns: Tensor, hessian: Tensor, codes: Tensor, levels: Tensor) -> Tensor:
    """(w - w') H (w - w')^T of every output [outputs]."""
    error = columns - loop.values(codes, levels)
    return (error * (hessian @ error)).sum(dim=0)


def _refit(columns: Tensor, hessian: Tensor, codes: Tensor, levels: Tensor) -> Tensor:
    """Changes levels [groups, outputs, count] in place; the loss [outputs]."""
    groups, outputs, count = levels.shape
    index = codes.reshape(groups, -1, outputs).long()

    def spread(centroids: Tensor) -> Tensor:  # P c
        return centroids.gather(1, index).view(columns.shape)

    def gathered(values: Tensor) -> Tensor:  # P^T v
        sums = values.new_zeros(groups, count, outputs)
        return sums.scatter_add_(1, index, values.view(index.shape))

    before = levels.transpose(1, 2).contiguous()
    error = columns - spread(before)
    gradient = hessian @ error
    loss = (error * gradient).sum(dim=0)
    found = before + _solution(gathered(gradient), gathered(_diagonal(hessian, columns)), spread, gathered, hessian)
    found = kmeans.storable(found)
    error = columns - spread(found)
    refitted = (error * (hessian @ error)).sum(dim=0)
    better = refitted < loss
    levels.copy_(torch.where(better, found, before).transpose(1, 2))
    return torch.where(better, refitted, loss)


def _diagonal(hessian: Tensor, columns: Tensor) -> Tensor:
    return hessian.diagonal()[:, None].expand(columns.shape).contiguous()


Apply = Callable[[Tensor], Tensor]


def _solution(residual: Tensor, weight: Tensor, spread: Apply, gathered: Apply, hessian: Tensor) -> Tensor:
    """x with P^T H P x = residual, all [groups, count, outputs]; `weight` are the sums of H's diagonal by level."""
    inverse = torch.where(weight > 0, 1 / weight, 0)  # a level without a code has no equation
    solution = torch.zeros_like(residual)
    scaled = inverse * residual
    direction, size = scaled, (residual * scaled).sum(dim=(0, 1))
    for _ in range(ITERATIONS):
        product = gathered(hessian @ spread(direction))
        curve = (direction * product).sum(dim=(0, 1))
        step = torch.where(curve > 0, size / curve, 0)
        solution = solution + step * direction
        residual = residual - step * product
        scaled = inverse * residual
        before, size = size, (residual * scaled).sum(dim=(0, 1))
        direction = scaled + torch.where(before > 0, size / before, 0) * direction
    return solution
