"""Second moments of a linear's inputs, and the precision in which sums over tokens are taken.

Conventions: X is [tokens, inputs], H = X^T X (the 2/N of the papers cancels everywhere: damping is relative).
Knows activations; no method and no module.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Self

import torch
from torch import Tensor

from hubplugin.errors import CompressError
from hubplugin.kernels.instructions import token_sums
from hubplugin.kernels.instructions.packed_tokens import PackedTokens

PANEL = 512  # rows of H that are summed at a time: only what lies left of the diagonal is computed


class PreparedInputs:
    """Inputs of a linear, prepared once for all the sums they go into; `take` replaces them and keeps the memory.

    Half precisions are widened, or stay as they are where a CPU multiplies them: products are exact either way.
    """

    def __init__(self) -> None:
        self.rows = torch.empty(0, 0)  # [tokens, inputs]
        self._stored = self.rows.dtype
        self._sides: dict[type[PackedTokens], list[PackedTokens]] = {}  # memory of each kind, left and right
        self._packed: PackedTokens | None = None

    def take(self, x: Tensor) -> Self:
        """Inputs [..., inputs]."""
        rows = x.reshape(-1, x.shape[-1])
        kind, self._stored = token_sums.kind(rows), x.dtype
        self.rows = rows if kind or rows.is_cuda else _wide(rows)
        self._packed = self._side(kind, 1).fill(rows) if kind else None
        return self

    def _side(self, kind: type[PackedTokens], side: int) -> PackedTokens:
        return self._sides.setdefault(kind, [kind(), kind()])[side]

    def part(self, first: int, last: int) -> Self:
        """Tokens first .. last."""
        selected = copy.copy(self)
        selected.rows = self.rows[first:last]
        if self._packed is not None:
            selected._packed = self._packed.part(first, last) or type(self._packed)().fill(selected.rows)
        return selected

    def add_square(self, total: Tensor) -> None:
        """total += x^T x over all tokens, at least on and below the diagonal; see `SecondMoments.matrix`."""
        rows = self.rows
        if self._packed is not None:
            token_sums.add_lower(total, self._packed)
        elif _triton(rows):
            from hubplugin.kernels import xtx_cuda  # Triton is there where CUDA is

            xtx_cuda.add_lower(total, rows)
        else:
            with products_of(self._stored):
                for first in range(0, len(total), PANEL):
                    last = first + PANEL
                    total[first:last, :last].addmm_(rows[:, first:last].T, rows[:, :last])

    def add_product(self, total: Tensor, y: Tensor) -> None:
        """total += y^T x over all tokens, for y [tokens, outputs] of the dtype of `rows`."""
        if self._packed is not None and token_sums.kind(y) is type(self._packed):
            left = self._side(type(self._packed), 0).fill(y, both=False)
            token_sums.add_product(total, left, self._packed)
        elif _triton(y):
            from hubplugin.kernels import xtx_cuda

            xtx_cuda.add_product(total, y, self.rows)
        else:
            with products_of(self._stored):
                total.addmm_(_wide(y).T, _wide(self.rows))


class SecondMoments:
    """Accumulates H = sum over tokens of x x^T in float32 (float64 for float64 inputs)."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum: Tensor | None = None
        self._prepared = PreparedInputs()

    def add(self, x: Tensor | PreparedInputs) -> None:
        """Add inputs [..., inputs]."""
        prepared = x if isinstance(x, PreparedInputs) else self._prepared.take(x)
        if self._sum is None:
            self._sum = zero_sum(prepared.rows, prepared.rows.shape[1])
        self.tokens += len(prepared.rows)
        prepared.add_square(self._sum)

    def matrix(self, where: str) -> Tensor:
        """H [inputs, inputs], the sum itself and no copy: change it only where nothing is added any more.

        Raises CompressError where activations were not finite or nothing was seen.
        """
        total = self._sum
        if total is None:
            raise CompressError(where, "no calibration token reached this layer", "calibrate with more samples")
        for first in range(0, len(total), PANEL):
            last = first + PANEL
            inside = total[first:last, first:last].tril()
            total[first:last, first:last] = inside + inside.tril(-1).T
            total[:first, first:last] = total[first:last, :first].T
        if not bool(torch.isfinite(total.diagonal()).all()):  # no entry is larger than the largest of these
            raise CompressError(
                where,
                "activations are NaN or infinite",
                "the base model overflows on these tokens; check its weights",
            )
        return total


def half_precision(weight: Tensor) -> torch.dtype:
    """The precision in which sums over float32 weights may be taken where three digits are enough."""
    return torch.bfloat16 if weight.dtype == torch.float32 else weight.dtype


def _wide(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()


def _triton(rows: Tensor) -> bool:
    return rows.is_cuda and rows.dtype != torch.float64


def token_sum(rows: Tensor) -> Tensor:
    return rows.sum(dim=0, dtype=torch.float64 if rows.dtype == torch.float64 else torch.float32)


def zero_sum(rows: Tensor, outputs: int) -> Tensor:
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return torch.zeros(outputs, rows.shape[1], dtype=dtype, device=rows.device)


@contextmanager
def products_of(dtype: torch.dtype) -> Iterator[None]:
    """Inside, float32 products of numbers that came from `dtype` run at the rate of bfloat16, if that loses nothing.

    The product of two bfloat16 numbers fits float32 exactly; what a CPU's matrix unit does with the sums is tried out
    once per process, and float32 products are used where it loses accuracy.
    """
    if dtype != torch.bfloat16 or not lossless():
        yield
        return
    with _fast():
        yield


@contextmanager
def _fast() -> Iterator[None]:
    cpu, cuda = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = cpu.fp32_precision, cuda.fp32_precision
    cpu.fp32_precision, cuda.fp32_precision = "bf16", "tf32"
    try:
        yield
    finally:
        cpu.fp32_precision, cuda.fp32_precision = before


@cache
def lossless() -> bool:
    """Whether float32 products through bfloat16 units are as exact as float32's own, for bfloat16 inputs."""
    x = torch.randn(2048, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    with _fast():
        product = x.float().T @ x.float()
    return token_sums.lossless(product, x)
