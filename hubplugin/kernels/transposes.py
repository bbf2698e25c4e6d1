"""The transposed copies between a weight and its columns, compiled for CPUs.

A sweep wants columns [inputs, outputs] in the order in which it visits them; a checkpoint wants rows. Both copies go
tile by tile, so that what is read and what is written stay in the cache. Knows no grid and no model.
"""

import torch
from torch import Tensor

from hubplugin.kernels.threads import compiled, spread

TILE = 64  # rows that a kernel takes at a time


def to_columns(weight: Tensor, order: Tensor) -> Tensor:
    """Columns [inputs, outputs] of weight [outputs, inputs], in the order int64 [inputs]."""
    columns = torch.empty(weight.shape[::-1], dtype=weight.dtype)
    spread(_to_columns, len(weight), weight.numpy(), order.numpy(), columns.numpy(), least=TILE)
    return columns


def to_rows(columns: Tensor, order: Tensor) -> Tensor:
    """The matrix [outputs, inputs] whose columns, in that order, are these: what undoes `to_columns`."""
    weight = torch.empty(columns.shape[::-1], dtype=columns.dtype)
    spread(_to_rows, len(weight), columns.numpy(), order.numpy(), weight.numpy(), least=TILE)
    return weight


@compiled
def _to_columns(first, last, weight, order, columns):  # type: ignore[no-untyped-def]
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
        for place in range(len(order)):
            column = order[place]
            for row in range(start, stop):
                columns[place, row] = weight[row, column]


@compiled
def _to_rows(first, last, columns, order, weight):  # type: ignore[no-untyped-def]
    for start in range(first, last, TILE):
        stop = min(start + TILE, last)
        for place in range(len(order)):
            column = order[place]
            for row in range(start, stop):
                weight[row, column] = columns[place, row]
