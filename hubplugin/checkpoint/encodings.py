"""How a compressed linear is stored: dense, on a grid, masked, as two factors, or with fewer columns.

Knows tensors. Knows no file.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dense:
    """Stored as it is."""


@dataclass(frozen=True)
class Grid:
    """Uniform grid: weight = scale * (code - zero). The one form that every file format is written from."""

    codes: Tensor  # uint8 [outputs, inputs], 0 .. 2^bits - 1
    scales: Tensor  # float16 [outputs, groups]; negative ones are allowed
    bits: int
    group_size: int  # inputs per group; never -1 here
    zeros: Tensor | None = None  # uint8 [outputs, groups]; None: symmetric, every zero is 2^(bits-1)

    def rows(self, outputs: slice | Tensor) -> "Grid":
        """The grid of these outputs."""
        zeros = None if self.zeros is None else self.zeros[outputs]
        return Grid(self.codes[outputs], self.scales[outputs], self.bits, self.group_size, zeros)

    def dense(self) -> Tensor:
        """The weights [outputs, inputs] that the codes stand for, float32."""
        zeros = torch.full_like(self.scales, 2 ** (self.bits - 1)) if self.zeros is None else self.zeros
        return expanded(self.codes, self.scales.float(), zeros.float())


@dataclass(frozen=True)
class Columns:
    """Some input columns are removed; the producers drop the same rows."""

    keep: Tensor  # int64 [kept], ascending


@dataclass(frozen=True)
class Masked:
    """Some weights are zero, anywhere; stored dense, zeros and all."""

    keep: Tensor  # bool [outputs, inputs]


@dataclass(frozen=True)
class LowRank:
    """Two factors: weight = b a."""

    b: Tensor  # [outputs, rank], in the dtype it is stored in
    a: Tensor  # [rank, inputs], the same; where linears share it, the same tensor

    def rows(self, outputs: slice | Tensor) -> "LowRank":
        """The factors of these outputs."""
        return LowRank(self.b[outputs], self.a)

    def dense(self) -> Tensor:
        """The weights [outputs, inputs] that the factors stand for, float32."""
        return product(self.b, self.a)


Encoding = Dense | Grid | Columns | Masked | LowRank


def product(b: Tensor, a: Tensor) -> Tensor:
    """b a, float32 [outputs, inputs], of factors [outputs, rank] and [rank, inputs].

    Summed in float64 and rounded once: whoever reads the factors gets these bits, whatever the order of the sums.
    """
    return (b.double() @ a.double()).float()


def values(code: Tensor, scale: Tensor, zero: Tensor | int) -> Tensor:
    """The weights that codes stand for: scale * (code - zero)."""
    return scale * (code - zero)


def expanded(code: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """The weights [outputs, inputs] of integer codes [outputs, inputs], scales and zeros [outputs, groups]."""
    dense = code.to(scale.dtype)
    grouped = dense.view(*scale.shape, -1)
    grouped.sub_(zero[..., None]).mul_(scale[..., None])
    return dense
