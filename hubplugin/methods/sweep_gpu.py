"""GPTQ's sweep for CUDA devices, in Triton: same signature and same answer as `sweep.sweep`, in float32.

Rows never influence each other, so a program takes ROWS of them through a block of BLOCK columns alone: scales, codes
and errors in one launch. What earlier blocks owe is a matrix product. Runs on CPU tensors under Triton's interpreter
(TRITON_INTERPRET=1, set before the first import). Knows a factor and a grid; no model, no file, no order of columns.

Why these sizes, for 132 multiprocessors: the narrowest linears of an 8B model have 4096 rows, which 32 at a time make
128 programs, one wave. A block's fit holds 128 x 32 weights, 32 registers in each of 128 threads; a candidate costs
them 8 instructions per weight, so 73 candidates 73 * 8 * 128 * 32 / 128 lanes = 19 thousand cycles, 11 us, and no
memory traffic. The columns of a block depend on each other: 128 steps of a division, a rounding and a product, about
100 cycles each. Around that, a block reads and writes 128 * rows * (4 + 4 + 4 + 1) bytes once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hubplugin.hessian import Factor
from hubplugin.methods import grid
from hubplugin.methods.grid import Spec
from hubplugin.methods.sweep import Swept, fully_updated

BLOCK = 128  # columns of one launch
PANEL = 8  # blocks; what all columns before a panel owe it is one product, large enough to fill the device
ROWS = 32  # of the weight, per program
WARPS = 4
CHUNK: Any = tl.constexpr(16)  # columns that feed each other one by one, unrolled in registers
DEPTH: Any = tl.constexpr(32)  # of an inner product's steps, or what precedes a chunk, read at once
ROUND: Any = tl.constexpr(1.5 * 2.0**23)  # x + ROUND - ROUND is x rounded half to even, for |x| < 2^22
SMALLEST: Any = tl.constexpr(grid.SMALLEST_SCALE)
LARGEST: Any = tl.constexpr(grid.LARGEST_SCALE)


def sweep(columns: Tensor, factor: Factor, importance: Tensor, spec: Spec) -> Swept:
    """Quantize float32 columns [inputs, outputs] one after another; see `sweep.sweep`."""
    columns, upper = columns.contiguous(), factor.unit_upper.contiguous()
    blocks = _blocks(len(columns), spec.group_size)
    with ieee_products():
        made = _Out(columns, upper, importance.contiguous(), spec)
        for panel in (blocks[first : first + PANEL] for first in range(0, len(blocks), PANEL)):
            start, stop = panel[0][0], panel[-1][1]
            owed = upper[:start, start:stop].T @ made.errors[:start]
            for first, last in panel:
                due = owed[first - start : last - start]
                if first > start:
                    due.addmm_(upper[start:first, first:last].T, made.errors[start:first])
                made.block(first, last, due)
    return Swept(made.codes, made.scales, made.zeros)


@contextmanager
def ieee_products() -> Iterator[None]:
    """Float32 products in float32: TF32's ten bits of mantissa in the feedback would flip codes."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _blocks(inputs: int, group: int) -> list[tuple[int, int]]:
    """First and last column of every block: whole groups where they fit, otherwise no block crosses a group's end."""
    width = BLOCK // group * group if group <= BLOCK else BLOCK
    unit = inputs if group <= BLOCK else group
    return [
        (first, min(first + width, start + unit))
        for start in range(0, inputs, unit)
        for first in range(start, start + unit, width)
    ]


class _Out:
    """The tensors a sweep fills, and the launches that fill them."""

    def __init__(self, columns: Tensor, upper: Tensor, importance: Tensor, spec: Spec) -> None:
        inputs, outputs = columns.shape
        groups, group = inputs // spec.group_size, spec.group_size
        self.columns, self.upper, self.importance, self.spec = columns, upper, importance, spec
        self.errors = torch.empty_like(columns)  # original minus quantized
        self.codes = torch.empty_like(columns, dtype=torch.uint8)
        self.scales, self.zeros = columns.new_empty(groups, outputs), columns.new_empty(groups, outputs)
        self.shares = columns.new_tensor((1.0, *spec.shares))
        self.fused = group <= BLOCK and group % DEPTH.value == 0 and group & (group - 1) == 0
        self.transfer = _transfer(upper, group) if self.fused else upper
        self.grid = (triton.cdiv(outputs, ROWS),)

    def block(self, first: int, last: int, owed: Tensor) -> None:
        """Codes and errors of columns first .. last, and scales of the groups that start there; overwrites `owed`."""
        spec, inside = self.spec, slice(first, last)
        if not self.fused and first % spec.group_size == 0:
            self.fit(first // spec.group_size)
        groups = slice(first // spec.group_size, -(-last // spec.group_size))
        _block_rows[self.grid](
            self.columns[inside],
            owed,
            self.upper[inside, inside],
            self.transfer[groups],
            self.importance[inside],
            self.shares,
            self.scales[groups],
            self.zeros[groups],
            self.codes[inside],
            self.errors[inside],
            outputs=self.columns.shape[1],
            pitch=len(self.upper),
            count=last - first,
            tried=len(self.shares),
            GROUP=spec.group_size if self.fused else BLOCK,
            FIT=self.fused,
            SYMMETRIC=spec.symmetric,
            TOP=spec.top,
            ROWS=ROWS,
            num_warps=WARPS,
            num_stages=1,  # loads must not move ahead of the stores that feed them
        )

    def fit(self, group: int) -> None:
        """Scales and zeros of one group that is longer than a block, or of an odd size."""
        start = group * self.spec.group_size
        inside = slice(start, start + self.spec.group_size)
        updated = self.columns[inside]
        if start:
            owed = self.upper[:start, inside].T @ self.errors[:start]
            updated = fully_updated(updated, owed, self.upper[inside, inside]).contiguous()
        _fit_rows[self.grid](
            updated,
            self.importance[inside],
            self.shares,
            self.scales[group],
            self.zeros[group],
            outputs=self.columns.shape[1],
            count=self.spec.group_size,
            tried=len(self.shares),
            SYMMETRIC=self.spec.symmetric,
            TOP=self.spec.top,
            ROWS=ROWS,
            num_warps=WARPS,
        )


def _transfer(upper: Tensor, group: int) -> Tensor:
    """M_gg^-T of every group [groups, group, group]: times what a group is owed, it says how far its weights move."""
    groups = len(upper) // group
    inside = upper.reshape(groups, group, groups, group).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    unit = torch.eye(group, dtype=upper.dtype, device=upper.device).expand(groups, group, group)
    return torch.linalg.solve_triangular(inside.mT, unit, upper=False, unitriangular=True).contiguous()


@triton.jit
def _rounded(x: Any) -> Any:
    """Half to even, of |x| < 2^22. Exact in every backend; written out because libdevice has no interpreter."""
    return (x + ROUND) - ROUND


@triton.jit
def _storable(scale: Any) -> Any:
    """grid.storable: the size clamped, then to bfloat16 by its bits, then to float16."""
    size = tl.minimum(tl.maximum(tl.abs(scale), SMALLEST), LARGEST)
    bits = size.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    size = bits.to(tl.float32, bitcast=True).to(tl.float16).to(tl.float32)
    return tl.where(scale < 0, -size, size)


@triton.jit
def _candidate(low: Any, high: Any, share: Any, SYMMETRIC: tl.constexpr, TOP: tl.constexpr) -> Any:
    """Scale and zero for one share of the full range low .. high."""
    if SYMMETRIC:
        scale = _storable(tl.div_rn(tl.maximum(high, -low), tl.full(low.shape, TOP / 2, tl.float32)) * share)
        zero = tl.full(low.shape, (TOP + 1) // 2, tl.float32)
    else:
        scale = _storable(tl.div_rn(high - low, tl.full(low.shape, TOP, tl.float32)) * share)
        zero = _rounded(tl.minimum(tl.maximum(tl.div_rn(-low * share, scale), 0.0), TOP))
    return scale, zero


@triton.jit
def _error(weight: Any, weigh: Any, scale: Any, zero: Any, TOP: tl.constexpr) -> Any:
    """What snapping weight [columns, rows] would cost per row. A product with 1/scale may land on the other side of a
    tie, where both sides cost the same."""
    inverse = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    level = tl.minimum(tl.maximum(weight * inverse[None, :], -zero[None, :]), TOP - zero[None, :])
    off = _rounded(level) * scale[None, :] - weight
    return tl.sum(weigh[:, None] * off * off, axis=0)


@triton.jit
def _fit(weight: Any, weigh: Any, shares: Any, tried: Any, SYMMETRIC: tl.constexpr, TOP: tl.constexpr) -> Any:
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


@triton.jit
def _fit_rows(
    updated: Any,
    importance: Any,
    shares: Any,
    scales: Any,
    zeros: Any,
    outputs: Any,
    count: Any,
    tried: Any,
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
    best_scale, best_zero = low, high
    least = tl.full((ROWS,), float("inf"), tl.float32)
    for trial in range(tried):
        scale, zero = _candidate(low, high, tl.load(shares + trial), SYMMETRIC, TOP)
        error = tl.zeros((ROWS,), tl.float32)
        for first in range(0, count, DEPTH):
            column = first + tl.arange(0, DEPTH)
            weigh = tl.load(importance + column, mask=column < count, other=0.0)
            error += _error(_tile(updated, first, count, row, outputs, DEPTH), weigh, scale, zero, TOP)
        better = (error < least) | (trial == 0)
        best_scale, best_zero = tl.where(better, scale, best_scale), tl.where(better, zero, best_zero)
        least = tl.where(better, error, least)
    tl.store(scales + row, best_scale, mask=mine)
    tl.store(zeros + row, best_zero, mask=mine)


@triton.jit
def _tile(matrix: Any, first: Any, count: Any, row: Any, outputs: Any, SIZE: tl.constexpr) -> Any:
    """matrix[first : first + SIZE, row], zero outside."""
    column = first + tl.arange(0, SIZE)
    inside = (column < count)[:, None] & (row < outputs)[None, :]
    return tl.load(matrix + column[:, None] * outputs + row[None, :], mask=inside, other=0.0)


@triton.jit
def _fed(due: Any, errors: Any, upper: Any, first: Any, before: Any, row: Any, outputs: Any, pitch: Any, count: Any):  # type: ignore[no-untyped-def]
    """due [columns from `first`, rows] plus what the errors of columns 0 .. before - 1 of the block add to them."""
    column = first + tl.arange(0, due.shape[0])
    for start in range(0, before, DEPTH):
        earlier = start + tl.arange(0, DEPTH)
        inside = (column < count)[:, None] & (earlier < before)[None, :]
        shares = tl.load(upper + earlier[None, :] * pitch + column[:, None], mask=inside, other=0.0)
        due = tl.dot(shares, _tile(errors, start, before, row, outputs, DEPTH), due, input_precision="ieee")
    return due


@triton.jit
def _block_rows(
    columns: Any,
    owed: Any,
    upper: Any,
    transfer: Any,
    importance: Any,
    shares: Any,
    scales: Any,
    zeros: Any,
    codes: Any,
    errors: Any,
    outputs: Any,
    pitch: Any,
    count: Any,
    tried: Any,
    GROUP: tl.constexpr,
    FIT: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    TOP: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """One block of `count` columns for ROWS rows. Everything is [columns, outputs] but `upper`, whose rows are `pitch`
    apart; `owed` ends up holding targets. Threads hand each other columns through memory: hence the barriers."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = row < outputs
    for start in range(0, count, GROUP):
        group = start // GROUP
        if FIT:
            due = _fed(_tile(owed, start, count, row, outputs, GROUP), errors, upper, start, start, row, outputs, pitch, count)
            inside = tl.arange(0, GROUP)
            tl.store(owed + (start + inside)[:, None] * outputs + row[None, :], due, mask=mine[None, :])
            tl.debug_barrier()
            weight = _tile(columns, start, count, row, outputs, GROUP)
            for first in range(0, GROUP, DEPTH):
                moves = tl.load(transfer + (group * GROUP + inside[:, None]) * GROUP + first + tl.arange(0, DEPTH)[None, :])
                weight = tl.dot(moves, _tile(owed, start + first, count, row, outputs, DEPTH), weight, input_precision="ieee")
            weigh = tl.load(importance + start + inside)
            scale, zero = _fit(weight, weigh, shares, tried, SYMMETRIC, TOP)
            tl.store(scales + group * outputs + row, scale, mask=mine)
            tl.store(zeros + group * outputs + row, zero, mask=mine)
        else:
            scale, zero = tl.load(scales + row, mask=mine, other=1.0), tl.load(zeros + row, mask=mine, other=0.0)
        ...
