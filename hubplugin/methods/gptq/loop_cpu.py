"""GPTQ's sweep compiled for CPUs: rows never influence each other, so tiles of rows run through a block alone.

Same signature and same answer as `loop.sweep`, in float32. The error feedback of earlier blocks is one matrix product;
inside a block, a tile of TILE rows keeps its targets and errors in the first-level cache and every inner loop runs over
the rows, which vectorises (a column of a tile is contiguous). Knows a factor and a grid; no model, no file, no order of
columns.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hubplugin.kernels.threads import compiled, spread
from hubplugin.kernels.transposes import TILE
from hubplugin.methods.gptq.grid import LARGEST_SCALE, SMALLEST_SCALE, Spec
from hubplugin.methods.gptq.loop import Swept, fully_updated
from hubplugin.methods.linear_algebra import Factor

BLOCK = 128  # columns between two matrix products, a multiple of every group size but a whole row; x TILE: 32 KB
RUN = 8  # columns; `_feed_run` is written out for as many
SMALLEST_NORMAL_HALF = 2.0**-14
HALF_STEP = 2.0**-24  # between float16 values below SMALLEST_NORMAL_HALF


def sweep(columns: Tensor, factor: Factor, importance: Tensor, spec: Spec) -> Swept:
    """Quantize float32 columns [inputs, outputs] one after another; see `loop.sweep`."""
    blocks = Blocks(columns, factor, importance, spec)
    for first, last, feedback in blocks:
        blocks.quantize(first, last, feedback)
    return blocks.swept()


class Blocks:
    """The arrays that a sweep fills, block of columns by block, and its two kernels spread over threads."""

    def __init__(self, columns: Tensor, factor: Factor, importance: Tensor, spec: Spec) -> None:
        inputs, outputs = columns.shape
        groups = inputs // spec.group_size
        self.columns, self.spec = columns, spec
        self.upper, self.importance = factor.unit_upper.contiguous(), importance
        self.errors = torch.empty_like(columns)  # original minus quantized
        self.codes = torch.empty((inputs, outputs), dtype=torch.uint8)
        self.scales, self.zeros = torch.empty(groups, outputs), torch.empty(groups, outputs)
        self.shares = np.array((1.0, *spec.shares), dtype=np.float32)

    def __iter__(self) -> Iterator[tuple[int, int, Tensor]]:
        """Blocks first .. last, each with the error feedback [columns, outputs] of the columns before it.

        A block's errors must be there before the next is asked for. Groups of BLOCK columns or more are fitted here.
        """
        group, upper = self.spec.group_size, self.upper
        for start in range(0, len(self.columns), group if group > BLOCK else BLOCK):
            stop = min(start + max(group, BLOCK), len(self.columns))
            feedback = upper[:start, start:stop].T @ self.errors[:start]
            if group >= BLOCK:
                inside = slice(start, stop)
                columns = self.columns[inside]
                updated = fully_updated(columns, feedback, upper[inside, inside]) if start else columns
                self._fit(start // group, updated)
            for first in range(start, stop, BLOCK):
                last = min(first + BLOCK, stop)
                block_feedback = feedback[first - start : last - start]
                if first > start:
                    block_feedback += upper[start:first, first:last].T @ self.errors[start:first]
                yield first, last, block_feedback

    def _fit(self, group: int, updated: Tensor) -> None:
        """Scales and zeros of one group, from its fully updated weights [group, outputs]."""
        spec, first = self.spec, group * self.spec.group_size
        importance = self.importance[first : first + spec.group_size].numpy()
        arguments = (updated.numpy(), importance, self.shares, spec.symmetric, np.float32(spec.top))
        results = self.scales[group].numpy(), self.zeros[group].numpy()
        spread(_fit_rows, self.columns.shape[1], *arguments, *results, least=TILE)

    def quantize(self, first: int, last: int, feedback: Tensor) -> None:
        """Codes and errors of columns first .. last; fits the groups that start inside where they are smaller."""
        arguments = self.arguments(first, last, feedback, slice(None))
        spread(_block_rows, self.columns.shape[1], *arguments, least=TILE)

    def arguments(self, first: int, last: int, feedback: Tensor, outputs: slice) -> tuple[Any, ...]:
        """What a kernel reads of columns first .. last and some outputs, and last the four arrays that it fills."""
        spec, inside = self.spec, slice(first, last)
        groups = slice(first // spec.group_size, -(-last // spec.group_size))
        filled = self.scales[groups], self.zeros[groups], self.codes[inside], self.errors[inside]
        return (
            self.columns[inside, outputs].numpy(),
            feedback.contiguous()[:, outputs].numpy(),
            self.upper[inside, inside].contiguous().numpy(),
            self.importance[inside].numpy(),
            self.shares,
            spec.symmetric,
            np.float32(spec.top),
            spec.group_size if spec.group_size < BLOCK else 0,
            *(tensor[:, outputs].numpy() for tensor in filled),
        )

    def swept(self) -> Swept:
        """The result, when all blocks are quantized."""
        return Swept(self.codes, self.scales, self.zeros)


@compiled
def _storable(scale: Any) -> Any:  # float32 [n], in place: grid.storable
    bits = scale.view(np.int32)
    for row in range(len(scale)):
        sign = bits[row] & np.int32(-0x80000000)
        scale[row] = min(max(abs(scale[row]), np.float32(SMALLEST_SCALE)), np.float32(LARGEST_SCALE))
        bits[row] = (bits[row] + np.int32(0x7FFF) + ((bits[row] >> 16) & 1)) & np.int32(-0x10000)  # to bfloat16
        if scale[row] < np.float32(SMALLEST_NORMAL_HALF):
            scale[row] = np.rint(scale[row] / np.float32(HALF_STEP)) * np.float32(HALF_STEP)
        bits[row] |= sign


@compiled
def fit(weight, importance, shares, symmetric, top, best_scale, best_zero):  # type: ignore[no-untyped-def]
    """grid.fit for a tile: weight [columns, rows], results [rows]."""
    count, rows = weight.shape
    low, high = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    least, error = np.empty(rows, np.float32), np.empty(rows, np.float32)
    scale, zero = np.empty(rows, np.float32), np.empty(rows, np.float32)
    inverse, bottom, end = np.empty(rows, np.float32), np.empty(rows, np.float32), np.empty(rows, np.float32)
    for column in range(count):
        for row in range(rows):
            low[row] = min(low[row], weight[column, row])
            high[row] = max(high[row], weight[column, row])
    for tried in range(len(shares)):
        share = shares[tried]
        if symmetric:
            for row in range(rows):
                scale[row] = max(high[row], -low[row]) / (top / np.float32(2)) * share
            _storable(scale)
            zero[:] = (top + np.float32(1)) / np.float32(2)
        else:
            for row in range(rows):
                scale[row] = (high[row] - low[row]) / top * share
            _storable(scale)
            for row in range(rows):
                zero[row] = min(max(np.rint(-low[row] * share / scale[row]), np.float32(0)), top)
        error[:] = 0
        for row in range(rows):  # in units of a step: a multiplication where a division would take most of the time
            inverse[row], bottom[row], end[row] = np.float32(1) / scale[row], -zero[row], top - zero[row]
        for column in range(count):
            weigh = importance[column]
            for row in range(rows):
                steps = weight[column, row] * inverse[row]
                off = min(max(np.rint(steps), bottom[row]), end[row]) - steps
                error[row] += weigh * off * off
        for row in range(rows):
            lost = error[row] * scale[row] * scale[row]
            if tried == 0 or lost < least[row]:
                least[row], best_scale[row], best_zero[row] = lost, scale[row], zero[row]


@compiled
def _fit_rows(first, last, weight, importance, shares, symmetric, top, scales, zeros):  # type: ignore[no-untyped-def]
    """Scales and zeros of rows first .. last of one group."""
    for start in range(first, last, TILE):
        rows = slice(start, min(start + TILE, last))
        tile = weight[:, rows].copy()
        fit(tile, importance, shares, symmetric, top, scales[rows], zeros[rows])


@compiled
def _block_rows(  # type: ignore[no-untyped-def]
    first, last, weight, feedback, upper, importance, shares, symmetric, top, group, scales, zeros, codes, errors
):
    """Codes and errors of rows first .. last of one block; `group` > 0: its groups are fitted on the way."""
    count = len(weight)
    for start in range(first, last, TILE):
        rows = slice(start, min(start + TILE, last))
        width = rows.stop - rows.start
        target = (weight[:, rows] + feedback[:, rows]).copy()
        error = np.empty((count, width), np.float32)
        updated = np.empty((max(group, 1), width), np.float32)
        for column in range(count):
            if group and column % group == 0:
                update(target, weight, upper, column, group, rows.start, updated)
                inside = slice(column, column + group)
                at = column // group
                fit(updated, importance[inside], shares, symmetric, top, scales[at, rows], zeros[at, rows])
            at = column // group if group else 0
            scale, zero = scales[at, rows], zeros[at, rows]
            for row in range(width):
                code = min(max(np.rint(target[column, row] / scale[row]) + zero[row], np.float32(0)), top)
                codes[column, start + row] = np.uint8(code)
                error[column, row] = weight[column, start + row] - scale[row] * (code - zero[row])
            feed_back(target, error, upper, column)
        errors[:, rows] = error


@compiled
def feed_back(target, error, upper, column):  # type: ignore[no-untyped-def]
    """Add the error feedback of a column: at once to later ones of its run, to all others with the last of the run."""
    count, width = target.shape
    run = column - column % RUN
    for later in range(column + 1, min(run + RUN, count)):
        share = upper[column, later]
        for row in range(width):
            target[later, row] += share * error[column, row]
    if column == run + RUN - 1:
        _feed_run(target, error, upper, run)


@compiled
def _feed_run(target, error, upper, first):  # type: ignore[no-untyped-def]
    """Add the error feedback of a run of eight to later columns: one read and write of a target for eight products."""
    count, width = target.shape
    for later in range(first + 8, count):
        a, b, c, d = upper[first, later], upper[first + 1, later], upper[first + 2, later], upper[first + 3, later]
        e, f, g, h = upper[first + 4, later], upper[first + 5, later], upper[first + 6, later], upper[first + 7, later]
        for row in range(width):
            one = a * error[first, row] + b * error[first + 1, row] + c * error[first + 2, row]
            two = d * error[first + 3, row] + e * error[first + 4, row] + f * error[first + 5, row]
            target[later, row] += one + two + (g * error[first + 6, row] + h * error[first + 7, row])


@compiled
def update(target, weight, upper, first, group, start, updated):  # type: ignore[no-untyped-def]
    """Fully updated weights of the group at `first`: W + M^-T (target - W), by forward substitution."""
    rows = updated.shape[1]
    for column in range(group):
        for row in range(rows):
            updated[column, row] = target[first + column, row] - weight[first + column, start + row]
        for earlier in range(column):
            share = upper[first + earlier, first + column]
            for row in range(rows):
                updated[column, row] -= share * updated[earlier, row]
    for column in range(group):
        for row in range(rows):
            updated[column, row] += weight[first + column, start + row]
