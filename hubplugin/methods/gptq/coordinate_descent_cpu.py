"""Coordinate descent and refit compiled for CPUs: rows never influence each other, so tiles of rows go through alone.

Same signature and same answer as `coordinate_descent.descend`, in float32. The gradient of a block is one matrix
product; inside a block, a tile of TILE rows keeps its gradient in the first-level cache. Knows second moments and a
grid; no model, no file, no order of columns.
"""

import numpy as np
from torch import Tensor

from hubplugin.kernels.threads import compiled, spread
from hubplugin.kernels.transposes import TILE
from hubplugin.methods.gptq import coordinate_descent
from hubplugin.methods.gptq.loop import Swept
from hubplugin.methods.gptq.loop_cpu import BLOCK


def descend(columns: Tensor, hessian: Tensor, swept: Swept, top: int, move: bool, refit: bool) -> None:
    """Improve the result of a sweep of float32 columns [inputs, outputs]; see `coordinate_descent.descend`."""
    inputs, outputs = columns.shape
    group, errors = inputs // len(swept.scales), coordinate_descent.quantization_error(columns, swept)
    for number, (scale, zero) in enumerate(zip(swept.scales, swept.zeros, strict=True)):
        begin, end = number * group, (number + 1) * group
        if move:
            for first in range(begin, end, BLOCK):
                block = slice(first, min(first + BLOCK, end))
                arrays = (hessian[block] @ errors, hessian[block, block].contiguous(), scale)
                changed = swept.codes[block].numpy(), errors[block].numpy()
                spread(_move_rows, outputs, *(array.numpy() for array in arrays), np.float32(top), *changed, least=TILE)
        if refit:
            inside = slice(begin, end)
            steps = swept.codes[inside] - zero
            change = coordinate_descent.refitted(steps, hessian[inside] @ errors, hessian[inside, inside], scale)
            errors[inside] -= change * steps


@compiled
def _move_rows(first, last, gradient, square, scales, top, codes, errors):  # type: ignore[no-untyped-def]
    """Codes and errors of rows first .. last of one block, in place."""
    count = len(gradient)
    for start in range(first, last, TILE):
        rows = slice(start, min(start + TILE, last))
        width = rows.stop - rows.start
        pull = gradient[:, rows].copy()
        scale = scales[rows]
        change = np.empty(width, np.float32)
        for column in range(count):
            share = np.float32(1) / square[column, column]
            for row in range(width):
                code = np.float32(codes[column, start + row])
                moved = min(max(np.rint(code + pull[column, row] * share / scale[row]), np.float32(0)), top)
                codes[column, start + row] = np.uint8(moved)
                change[row] = scale[row] * (moved - code)
                errors[column, start + row] -= change[row]
            for later in range(column + 1, count):  # earlier columns are final
                share = square[later, column]
                for row in range(width):
                    pull[later, row] -= share * change[row]
