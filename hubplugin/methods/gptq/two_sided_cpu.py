"""The two-sided sweep compiled for CPUs: tiles of outputs run through a block of columns one after another.

Same signature and same answer as `two_sided.sweep`, in float32. What earlier blocks of columns and earlier tiles of
outputs feed a tile are two matrix products; inside it, every output of a column is rounded and feeds the later ones.
Knows factors and a grid; no model, no module and no file.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hubplugin.kernels.threads import compiled, spread
from hubplugin.methods.gptq.grid import Spec
from hubplugin.methods.gptq.loop import Swept
from hubplugin.methods.gptq.loop_cpu import RUN, Blocks, feed_back, fit, update
from hubplugin.methods.gptq.two_sided import Stacked
from hubplugin.methods.linear_algebra import Factor

OUTPUTS = 128  # of a tile: with its block of columns, an array of 64 KB


class _OutputTile(NamedTuple):
    """A tile of a linear's outputs."""

    earlier: slice  # outputs of the linear before it
    outputs: slice  # its own
    beside: Tensor  # [earlier, own], of the factor: how those feed it
    inside: Tensor  # [own, own]: how they feed each other


def sweep(columns: Tensor, factor: Factor, importance: Tensor, spec: Spec, stacked: Stacked) -> Swept:
    """Quantize float32 columns [inputs, outputs] one after another; see `two_sided.sweep`."""
    blocks = Blocks(columns, factor, importance, spec)
    linears = [list(_tiles(*part)) for part in stacked.parts]
    for first, last, feedback in blocks:
        residuals = torch.empty(last - first, columns.shape[1])  # of targets, which feed later outputs
        spread(_some_linears, len(linears), linears, residuals, partial(blocks.arguments, first, last, feedback))
    return blocks.swept()


def _some_linears(
    first: int,
    last: int,
    linears: list[list[_OutputTile]],
    residuals: Tensor,
    arguments: Callable[[slice], tuple[Any, ...]],
) -> None:
    """A block of columns of some linears, which do not feed each other: each may have a thread."""
    for tiles in linears[first:last]:
        for tile in tiles:
            outside = residuals[:, tile.earlier] @ tile.beside
            own = residuals[:, tile.outputs].numpy()
            _tile(outside.numpy(), tile.inside.numpy(), own, *arguments(tile.outputs))


def _tiles(linear: slice, unit_upper: Tensor) -> Iterator[_OutputTile]:
    for start in range(0, len(unit_upper), OUTPUTS):
        own = slice(start, min(start + OUTPUTS, len(unit_upper)))
        earlier = slice(linear.start, linear.start + start)
        outputs = slice(linear.start + own.start, linear.start + own.stop)
        yield _OutputTile(earlier, outputs, unit_upper[:start, own], unit_upper[own, own].contiguous())


@compiled
def _tile(  # type: ignore[no-untyped-def]
    outside,
    across,
    residuals,
    weight,
    feedback,
    upper,
    importance,
    shares,
    symmetric,
    top,
    group,
    scales,
    zeros,
    codes,
    errors,
):
    """Codes and errors of a block of columns of a tile, whose outputs are fed `outside` by earlier ones.

    `group` > 0: groups are fitted on the way.
    """
    count, width = weight.shape
    columns, target = weight.copy(), weight + feedback
    error, aimed = np.empty((count, width), np.float32), np.empty(width, np.float32)
    updated = np.empty((max(group, 1), width), np.float32)
    for column in range(count):
        if group and column % group == 0:
            update(target, columns, upper, column, group, 0, updated)
            at = column // group
            fit(updated, importance[column : column + group], shares, symmetric, top, scales[at], zeros[at])
        at = column // group if group else 0
        scale, zero = scales[at], zeros[at]
        for row in range(width):
            aimed[row] = target[column, row] + outside[column, row]
        for first in range(0, width, RUN):  # outputs of a run feed each other one by one, and later outputs together
            last = min(first + RUN, width)
            for row in range(first, last):
                code = min(max(np.rint(aimed[row] / scale[row]) + zero[row], np.float32(0)), top)
                value = scale[row] * (code - zero[row])
                residual = target[column, row] - value
                codes[column, row], residuals[column, row] = np.uint8(code), residual
                error[column, row] = columns[column, row] - value
                for later in range(row + 1, last):
                    aimed[later] += across[row, later] * residual
            if last < width:
                _feed_later(aimed, across, residuals[column], first)
        feed_back(target, error, upper, column)
    errors[:, :] = error


@compiled
def _feed_later(aimed, across, residuals, first):  # type: ignore[no-untyped-def]
    """Add what a run of eight outputs feeds to later ones: one read and write of a target for eight products."""
    a, b, c, d = residuals[first], residuals[first + 1], residuals[first + 2], residuals[first + 3]
    e, f, g, h = residuals[first + 4], residuals[first + 5], residuals[first + 6], residuals[first + 7]
    for later in range(first + 8, len(aimed)):
        one = a * across[first, later] + b * across[first + 1, later] + c * across[first + 2, later]
        two = d * across[first + 3, later] + e * across[first + 4, later] + f * across[first + 5, later]
        aimed[later] += one + two + (g * across[first + 6, later] + h * across[first + 7, later])
