"""The kernels of `loop_cuda`: a program takes ROWS rows of a weight (columns of what it is given) through one block.

Everything is float32 and [columns, outputs], outputs contiguous, so that threads side by side read side by side. Knows
pointers and sizes only. Kernels are written in Triton's subset of Python: scalars and tensors alike are `tl.tensor`.
"""
# mypy: disable-error-code="assignment,var-annotated"
# ruff: noqa: RUF005

from typing import Any

import triton
import triton.language as tl

from hubplugin.methods.gptq import grid

CHUNK: Any = tl.constexpr(16)  # columns that feed each other one by one, unrolled in registers
DEPTH: Any = tl.constexpr(32)  # of an inner product's steps, or what precedes a chunk, read at once
ROUND: Any = tl.constexpr(1.5 * 2.0**23)  # x + ROUND - ROUND is x rounded half to even, for |x| < 2^22
SMALLEST: Any = tl.constexpr(grid.SMALLEST_SCALE)
LARGEST: Any = tl.constexpr(grid.LARGEST_SCALE)


@triton.jit
def _rounded(x: tl.tensor) -> tl.tensor:
    """Half to even, of |x| < 2^22. Exact in every backend; written out because libdevice has no interpreter."""
    return (x + ROUND) - ROUND


@triton.jit
def _storable(scale: tl.tensor) -> tl.tensor:
    """grid.storable: the size clamped, then to bfloat16 by its bits, then to float16."""
    size = tl.minimum(tl.maximum(tl.abs(scale), SMALLEST), LARGEST)
    bits = size.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    size = bits.to(tl.float32, bitcast=True).to(tl.float16).to(tl.float32)
    sign = scale.to(tl.int32, bitcast=True) & -0x80000000
    return (size.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _candidate(
    low: tl.tensor, high: tl.tensor, share: tl.tensor, SYMMETRIC: tl.constexpr, TOP: tl.constexpr
) -> tl.tensor:
    """Scale and zero for one share of the full range low .. high."""
    if SYMMETRIC:
        largest = tl.abs(tl.maximum(high, -low))  # 0, never -0
        scale = _storable(tl.div_rn(largest, tl.full(low.shape, TOP / 2, tl.float32)) * share)
        zero = tl.full(low.shape, (TOP + 1) // 2, tl.float32)
    else:
        scale = _storable(tl.div_rn(high - low, tl.full(low.shape, TOP, tl.float32)) * share)
        zero = _rounded(tl.minimum(tl.maximum(tl.div_rn(-low * share, scale), 0.0), TOP))
    return scale, zero


@triton.jit
def _error(weight: tl.tensor, weigh: tl.tensor, scale: tl.tensor, zero: tl.tensor, TOP: tl.constexpr) -> tl.tensor:
    """What snapping weight [columns, rows] would cost per row. A product with 1/scale may land on the other side of a
    tie, where both sides cost the same."""
    inverse = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    level = tl.minimum(tl.maximum(weight * inverse[None, :], -zero[None, :]), TOP - zero[None, :])
    off = _rounded(level) * scale[None, :] - weight
    return tl.sum(weigh[:, None] * off * off, axis=0)


@triton.jit
def _fit(
    weight: tl.tensor, weigh: tl.tensor, shares: tl.tensor, tried: tl.tensor, SYMMETRIC: tl.constexpr, TOP: tl.constexpr
) -> tl.tensor:
    """grid.fit for weight [columns, rows], which stays in registers; `shares` begins with the full range."""
    low, high = tl.minimum(tl.min(weight, axis=0), 0.0), tl.maximum(tl.max(weight, axis=0), 0.0)
    best_scale, best_zero = _candidate(low, high, tl.load(shares), SYMMETRIC, TOP)
    least = _error(weight, weigh, best_scale, best_zero, TOP)
    for trial in range(1, tried):
        scale, zero = _candidate(low, high, tl.load(shares + trial), SYMMETRIC, TOP)
        error = _error(weight, weigh, scale, zero, TOP)
        better = error < least
        best_scale, best_zero = tl.where(better, scale, best_scale), tl.where(better, zero, best_zero)
        least = tl.where(better, error, least)
    return best_scale, best_zero


@triton.jit(do_not_specialize=["count", "tried"], do_not_specialize_on_alignment=["scales", "zeros"])
def fit_rows(
    updated: tl.tensor,
    importance: tl.tensor,
    shares: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    outputs: tl.tensor,
    count: tl.tensor,
    tried: tl.tensor,
    SYMMETRIC: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Scales and zeros [outputs] of one group of any length: updated [count, outputs], read once per candidate."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = row < outputs
    low, high = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for first in range(0, count, DEPTH):
        tile = _tile(updated, first, count, row, outputs, DEPTH)
        low, high = tl.minimum(low, tl.min(tile, axis=0)), tl.maximum(high, tl.max(tile, axis=0))
    best_scale, best_zero = _candidate(low, high, tl.load(shares), SYMMETRIC, TOP)
    least = tl.full((ROWS,), float("inf"), tl.float32)
    for trial in range(tried):
        scale, zero = _candidate(low, high, tl.load(shares + trial), SYMMETRIC, TOP)
        error = tl.zeros((ROWS,), tl.float32)
        for first in range(0, count, DEPTH):
            column = first + tl.arange(0, DEPTH)
            weigh = tl.load(importance + column, mask=column < count, other=0.0)
            error += _error(_tile(updated, first, count, row, outputs, DEPTH), weigh, scale, zero, TOP)
        better = error < least
        best_scale, best_zero = tl.where(better, scale, best_scale), tl.where(better, zero, best_zero)
        least = tl.where(better, error, least)
    tl.store(scales + row, best_scale, mask=mine)
    tl.store(zeros + row, best_zero, mask=mine)


@triton.jit
def _tile(
    matrix: tl.tensor, first: tl.tensor, count: tl.tensor, row: tl.tensor, outputs: tl.tensor, SIZE: tl.constexpr
) -> tl.tensor:
    """matrix[first : first + SIZE, row], zero outside."""
    column = first + tl.arange(0, SIZE)
    inside = (column < count)[:, None] & (row < outputs)[None, :]
    return tl.load(matrix + column.to(tl.int64)[:, None] * outputs + row[None, :], mask=inside, other=0.0)


@triton.jit
def _keep(
    matrix: tl.tensor,
    tile: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    row: tl.tensor,
    outputs: tl.tensor,
    SIZE: tl.constexpr,
) -> None:
    """matrix[first : first + SIZE, row] = tile, for every thread of the program to read."""
    column = first + tl.arange(0, SIZE)
    inside = (column < count)[:, None] & (row < outputs)[None, :]
    tl.store(matrix + column.to(tl.int64)[:, None] * outputs + row[None, :], tile, mask=inside)
    tl.debug_barrier()


@triton.jit
def _fed(
    due: tl.tensor,
    first: tl.tensor,
    since: tl.tensor,
    before: tl.tensor,
    errors: tl.tensor,
    upper: tl.tensor,
    pitch: tl.tensor,
    count: tl.tensor,
    row: tl.tensor,
    outputs: tl.tensor,
) -> tl.tensor:
    """due [columns from `first`, rows] plus what the errors of columns since .. before - 1 add to them."""
    column = first + tl.arange(0, due.shape[0])
    for start in range(since, before, DEPTH):
        earlier = start + tl.arange(0, DEPTH)
        inside = (column < count)[:, None] & (earlier < before)[None, :]
        shares = tl.load(upper + earlier[None, :] * pitch + column[:, None], mask=inside, other=0.0)
        due = tl.dot(shares, _tile(errors, start, before, row, outputs, DEPTH), due, input_precision="ieee")
    return due


@triton.jit
def _chunk(
    columns: tl.tensor,
    targets: tl.tensor,
    upper: tl.tensor,
    codes: tl.tensor,
    errors: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    row: tl.tensor,
    outputs: tl.tensor,
    pitch: tl.tensor,
    count: tl.tensor,
    TOP: tl.constexpr,
) -> None:
    """Snap CHUNK columns one after another. Pointers stand at the first; all is read before anything is written, so
    that loads wait for no store."""
    target, weight, level, error = (), (), (), ()
    for column in tl.static_range(CHUNK):
        there = row < tl.where(column < count, outputs, 0)
        target = target + (tl.load(targets + column * outputs + row, mask=there, other=0.0),)
        weight = weight + (tl.load(columns + column * outputs + row, mask=there, other=0.0),)
    for column in tl.static_range(CHUNK):
        due = target[column]
        for earlier in tl.static_range(column):
            due += error[earlier] * tl.load(upper + earlier * pitch + column, mask=column < count, other=0.0)
        snapped = _rounded(tl.minimum(tl.maximum(tl.div_rn(due, scale), -zero), TOP - zero))
        level = level + (snapped,)
        error = error + (weight[column] - scale * snapped,)  # a scale has 8 bits of mantissa: the product is exact
    for column in tl.static_range(CHUNK):
        there = row < tl.where(column < count, outputs, 0)
        tl.store(codes + column * outputs + row, (level[column] + zero).to(tl.uint8), mask=there)
        tl.store(errors + column * outputs + row, error[column], mask=there)
    tl.debug_barrier()


@triton.jit
def _fit_group(
    columns: tl.tensor,
    feedback: tl.tensor,
    upper: tl.tensor,
    transfer: tl.tensor,
    importance: tl.tensor,
    shares: tl.tensor,
    errors: tl.tensor,
    start: tl.tensor,
    outputs: tl.tensor,
    pitch: tl.tensor,
    count: tl.tensor,
    tried: tl.tensor,
    row: tl.tensor,
    GROUP: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    TOP: tl.constexpr,
) -> tl.tensor:
    """Scales and zeros of the group at `start`, fitted to its fully updated weights W + M^-T feedback (loop.py)."""
    if start > 0:
        due = _tile(feedback, start, count, row, outputs, GROUP)
        due = _fed(due, start, 0, start, errors, upper, pitch, count, row, outputs)
        _keep(feedback, due, start, count, row, outputs, GROUP)
    weight = _tile(columns, start, count, row, outputs, GROUP)
    inside = tl.arange(0, GROUP)
    for first in range(0, GROUP, DEPTH):
        at = (start + inside)[:, None] * GROUP + first + tl.arange(0, DEPTH)[None, :]
        due = _tile(feedback, start + first, count, row, outputs, DEPTH)
        weight = tl.dot(tl.load(transfer + at), due, weight, input_precision="ieee")
    return _fit(weight, tl.load(importance + start + inside), shares, tried, SYMMETRIC, TOP)


@triton.jit(do_not_specialize=["count", "tried"], do_not_specialize_on_alignment=["scales", "zeros"])
def block_rows(
    columns: tl.tensor,
    feedback: tl.tensor,
    upper: tl.tensor,
    transfer: tl.tensor,
    importance: tl.tensor,
    shares: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    codes: tl.tensor,
    errors: tl.tensor,
    outputs: tl.tensor,
    pitch: tl.tensor,
    count: tl.tensor,
    tried: tl.tensor,
    GROUP: tl.constexpr,
    FIT: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """One block of `count` columns for ROWS rows. Everything is [columns, outputs] but `upper`, whose rows are `pitch`
    apart. `feedback` is overwritten by targets: threads hand each other columns through it and through `errors`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = row < outputs
    for start in range(0, count, GROUP):
        group = start // GROUP
        if FIT:
            scale, zero = _fit_group(
                columns, feedback, upper, transfer, importance, shares, errors, start, outputs, pitch, count, tried,
                row, GROUP, SYMMETRIC, TOP,
            )  # fmt: skip
            tl.store(scales + group * outputs + row, scale, mask=mine)
            tl.store(zeros + group * outputs + row, zero, mask=mine)
            tl.debug_barrier()
        # read back even if just fitted: the search spreads a row over threads, the columns want a row per thread
        scale = tl.load(scales + group * outputs + row, mask=mine, other=1.0)
        zero = tl.load(zeros + group * outputs + row, mask=mine, other=0.0)
        for first in range(start, tl.minimum(start + GROUP, count), CHUNK):
            due = _tile(feedback, first, count, row, outputs, CHUNK) + _tile(columns, first, count, row, outputs, CHUNK)
            due = _fed(due, first, start, first, errors, upper, pitch, count, row, outputs)
            _keep(feedback, due, first, count, row, outputs, CHUNK)
            at = first * outputs
            _chunk(
                columns + at, feedback + at, upper + first * pitch + first, codes + at, errors + at, scale, zero, row,
                outputs, pitch, count - first, TOP,
            )  # fmt: skip
