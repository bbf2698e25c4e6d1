"""How a compressed linear is stored: dense, as codes, masked, as two factors, or with fewer columns.

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
class Codebook:
    """Shared values: weight = centroids[output, group of the input, code]."""

    codes: Tensor  # uint8 [outputs, inputs], 0 .. 2^bits - 1
    centroids: Tensor  # float16 [outputs, groups, 2^bits], each also a bfloat16
    bits: int

    def rows(self, outputs: slice | Tensor) -> "Codebook":
        """The codes and codebooks of these outputs."""
        return Codebook(self.codes[outputs], self.centroids[outputs], self.bits)

    def dense(self) -> Tensor:
        """The weights [outputs, inputs] that the codes stand for, float32."""
        return looked_up(self.codes, self.centroids)


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # values of an FP4 code's three low bits; its fourth is the sign
FP4_GROUP = 16  # inputs that share a scale in NVFP4


@dataclass(frozen=True)
class Fp4:
    """NVFP4's shared values: weight = scale / divisor * the E2M1 number that a code is."""

    codes: Tensor  # uint8 [outputs, inputs], 0 .. 15: bit 3 is the sign, the others say which of E2M1
    scales: Tensor  # float8_e4m3fn [outputs, inputs / FP4_GROUP], above zero
    divisor: float  # of all scales, a power of two; one for all linears that an engine stacks into one matrix

    def rows(self, outputs: slice | Tensor) -> "Fp4":
        """The codes and scales of these outputs."""
        return Fp4(self.codes[outputs], self.scales[outputs], self.divisor)

    def dense(self) -> Tensor:
        """The weights [outputs, inputs] that the codes stand for, float32."""
        return fp4_values(self.codes, self.scales, self.divisor)


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


@dataclass(frozen=True)
class CodedFactors:
    """Two factors, each of codes: weight = b a."""

    b: Grid  # [outputs, rank]
    a: Grid  # [rank, inputs]; where linears share it, the same grid

    def rows(self, outputs: slice | Tensor) -> "CodedFactors":
        """The factors of these outputs."""
        return CodedFactors(self.b.rows(outputs), self.a)

    def dense(self) -> Tensor:
        """The weights [outputs, inputs] that the factors stand for, float32."""
        return product(self.b.dense(), self.a.dense())


Coded = Grid | Codebook | Fp4  # what a quantizer makes
Encoding = Dense | Coded | Columns | Masked | LowRank | CodedFactors


def looked_up(codes: Tensor, centroids: Tensor) -> Tensor:
    """The weights float32 [outputs, inputs] of codes [outputs, inputs] in codebooks [outputs, groups, centroids]."""
    outputs, groups, _ = centroids.shape
    found = centroids.float().gather(2, codes.view(outputs, groups, -1).long())
    return found.view(outputs, -1)


def fp4_values(codes: Tensor, scales: Tensor, divisor: float | Tensor) -> Tensor:
    """The weights float32 [outputs, inputs] of FP4 codes [outputs, inputs] with scales [outputs, groups]."""
    table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=codes.device)
    scaled = table[codes.long()].view(*scales.shape, -1) * (scales.float() / divisor)[..., None]
    return scaled.view(codes.shape)


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
