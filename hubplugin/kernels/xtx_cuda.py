"""Sums over tokens on CUDA devices, in Triton: the lower triangle of X^T X, half the work of a product; and X~^T X.

Products of two 16-bit floats fit float32 exactly, and tensor cores add them up in float32: nothing is lost that a
float32 product of the same activations would keep. Knows no model and no method.

Why these sizes, for an H200: a tile of 128 x 256 sums over 64 tokens does 4.2 MFLOP for 48 KB read, 85 FLOP per byte;
at 600 TFLOP/s that asks 7 TB/s of the second-level cache, about what it gives. Four stages of 48 KB fill shared
memory, two warp groups hold 64 x 256 sums each. Programs start in bands of BAND tile rows, so that those which run at
the same time read the same columns. What is added to is touched once per SPAN tokens: 8 bytes per 16384 products.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TALL, WIDE, DEEP = 128, 256, 64  # a tile's rows and columns, and the tokens read at once
BAND: Any = tl.constexpr(8)
SPAN = 16384  # tokens summed inside the tensor cores before float32 addition takes over
STRIP = 2048  # columns mirrored at once


@contextmanager
def ieee_products() -> Iterator[None]:
    """Float32 products in float32 on CUDA, whatever was set; TF32's ten bits of mantissa would flip codes."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def add_lower(total: Tensor, x: Tensor) -> None:
    """total += x^T x on and below the diagonal; what is above it afterwards means nothing (see `mirror`).

    x [tokens, inputs] bfloat16, float16 or float32; total [inputs, inputs] float32, contiguous.
    Raises ValueError for a total of another shape, dtype or layout.
    """
    _add(total, x, x, lower=True)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right, for left [tokens, m] and right [tokens, n] of one dtype, total [m, n]; see `add_lower`."""
    _add(total, left, right, lower=False)


def _add(total: Tensor, left: Tensor, right: Tensor, lower: bool) -> None:
    shape = left.shape[1], right.shape[1]
    if total.shape != shape or total.dtype != torch.float32 or not total.is_contiguous():
        raise ValueError(f"need a contiguous float32 {list(shape)} to add to, not {total.dtype} {list(total.shape)}")
    if left.dtype == torch.float32:
        with ieee_products():
            total.addmm_(left.T, right)
        return
    left, right = (x if x.stride(1) == 1 else x.contiguous() for x in (left, right))
    grid = (triton.cdiv(shape[0], TALL) * triton.cdiv(shape[1], WIDE),)
    for some, others in zip(torch.split(left, SPAN), torch.split(right, SPAN), strict=True):
        _add_tiles[grid](
            total,
            some,
            others,
            len(some),
            *shape,
            some.stride(0),
            others.stride(0),
            LOWER=lower,
            TALL=TALL,
            WIDE=WIDE,
            DEEP=DEEP,
            num_warps=8,
            num_stages=4,
            enable_fp_fusion=True,
        )


def mirror(total: Tensor) -> None:
    """Copy what is below the diagonal of total [n, n] above it, in place and in strips."""
    for start in range(0, len(total), STRIP):
        stop = start + STRIP
        corner = total[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).T)
        total[start:stop, stop:] = total[stop:, start:stop].T


@triton.jit
def _add_tiles(
    total: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    tokens: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    left_pitch: tl.tensor,
    right_pitch: tl.tensor,
    LOWER: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
) -> None:
    """One tile of left^T right; with LOWER, tiles wholly above the diagonal return at once."""
    wide = tl.cdiv(columns, WIDE)
    band = tl.program_id(0) // (BAND * wide)
    height = tl.minimum(tl.cdiv(rows, TALL) - band * BAND, BAND)
    within = tl.program_id(0) - band * BAND * wide
    top, start = (band * BAND + within % height) * TALL, (within // height) * WIDE
    if LOWER:  # noqa: SIM102
        if start >= top + TALL:
            return
    down, across, token = top + tl.arange(0, TALL), start + tl.arange(0, WIDE), tl.arange(0, DEEP)
    sums = tl.zeros((TALL, WIDE), tl.float32)
    # 64 bits: tokens times inputs passes 2^31
    one = left + token[:, None].to(tl.int64) * left_pitch + down[None, :]
    other = right + token[:, None].to(tl.int64) * right_pitch + across[None, :]
    for before in range(0, tokens, DEEP):
        there = (before + token < tokens)[:, None]
        first = tl.load(one, mask=there & (down < rows)[None, :], other=0.0)
        second = tl.load(other, mask=there & (across < columns)[None, :], other=0.0)
        sums = tl.dot(tl.trans(first), second, sums)
        one += DEEP * left_pitch
        other += DEEP * right_pitch
    at = total + down[:, None].to(tl.int64) * columns + across[None, :]
    inside = (down < rows)[:, None] & (across < columns)[None, :]
    tl.store(at, tl.load(at, mask=inside, other=0.0) + sums, mask=inside)
