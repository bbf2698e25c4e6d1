"""The inner loop of a codebook's sweep, compiled for CPUs: same signature and same answer as `loop.snap`, in float32.

Rows never influence each other, so a tile of them goes through a block alone, and every inner loop runs over the rows,
which vectorises. Knows levels and a factor; no model, no file, no order of columns.
"""

import numpy as np
from torch import Tensor

from hubplugin.kernels.threads import compiled, spread
from hubplugin.kernels.transposes import TILE
from hubplugin.methods.gptq.loop_cpu import feed_back


def snap(target: Tensor, columns: Tensor, upper: Tensor, levels: Tensor, codes: Tensor, errors: Tensor) -> None:
    """Codes and errors of a block of float32 columns [n, outputs]; see `loop.snap`."""
    between = (levels[:, 1:] + levels[:, :-1]) / 2
    arrays = (target, columns, upper.contiguous(), between.T.contiguous(), levels.T.contiguous(), codes, errors)
    spread(_snap_rows, columns.shape[1], *(array.numpy() for array in arrays), least=TILE)


@compiled
def _snap_rows(first, last, target, columns, upper, between, levels, codes, errors):  # type: ignore[no-untyped-def]
    """Codes and errors of rows first .. last of one block."""
    count = len(columns)
    for start in range(first, last, TILE):
        rows = slice(start, min(start + TILE, last))
        width = rows.stop - rows.start
        due, own = target[:, rows].copy(), columns[:, rows]
        border, level = between[:, rows].copy(), levels[:, rows].copy()
        error = np.empty((count, width), np.float32)
        value, code = np.empty(width, np.float32), np.empty(width, np.float32)
        for column in range(count):
            for row in range(width):
                value[row], code[row] = level[0, row], np.float32(0)
            for step in range(len(border)):
                for row in range(width):  # levels ascend: the last border that is passed counts
                    above = due[column, row] > border[step, row]
                    value[row] = level[step + 1, row] if above else value[row]
                    code[row] = np.float32(step + 1) if above else code[row]
            for row in range(width):
                codes[column, start + row] = np.uint8(code[row])
                error[column, row] = own[column, row] - value[row]
            feed_back(due, error, upper, column)
        errors[:, rows] = error
