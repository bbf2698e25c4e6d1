"""Second moments of a linear's inputs, their damping and their one factorisation. The only Cholesky in the house.

Conventions: X is [tokens, inputs], H = X^T X (the 2/N of the papers cancels everywhere: damping is relative).
Knows no bits, no masks and no modules.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Self

import torch
from torch import Tensor

from hubplugin import moments_cpu
from hubplugin.errors import CompressError
from hubplugin.moments_cpu import Tiles

PANEL = 512  # rows of H that are summed at a time: only what lies left of the diagonal is computed


class Seen:
    """Inputs of a linear, made ready once for all the sums they go into; `take` replaces them and keeps the memory.

    Half precisions are widened, or stay as they are where a matrix unit multiplies them: products are exact either way.
    """

    def __init__(self) -> None:
        self.rows = torch.empty(0, 0)  # [tokens, inputs]
        self._stored = self.rows.dtype
        self._tiles, self._left, self._tiled = Tiles(), Tiles(), False

    def take(self, x: Tensor) -> Self:
        """Inputs [..., inputs]."""
        rows = x.reshape(-1, x.shape[-1])
        self._stored, self._tiled = x.dtype, moments_cpu.fits(rows)
        self.rows = rows if self._tiled or rows.is_cuda else _wide(rows)
        if self._tiled:
            self._tiles.fill(rows)
        return self

    def part(self, first: int, last: int) -> Self:
        """Tokens first .. last."""
        found = copy.copy(self)
        found.rows = self.rows[first:last]
        if self._tiled:
            found._tiles = self._tiles.part(first, last) or Tiles().fill(found.rows)
        return found

    def add_square(self, total: Tensor) -> None:
        """total += x^T x over all tokens, at least on and below the diagonal; see `Moment.matrix`."""
        rows = self.rows
        if self._tiled:
            moments_cpu.add_lower(total, self._tiles)
        elif _triton(rows):
            from hubplugin import moments_gpu  # Triton is there where CUDA is

            moments_gpu.add_lower(total, rows)
        else:
            with products_of(self._stored):
                for first in range(0, len(total), PANEL):
                    last = first + PANEL
                    total[first:last, :last].addmm_(rows[:, first:last].T, rows[:, :last])

    def add_product(self, total: Tensor, y: Tensor) -> None:
        """total += y^T x over all tokens, for y [tokens, outputs] of the dtype of `rows`."""
        if self._tiled and moments_cpu.fits(y):
            moments_cpu.add_product(total, self._left.fill(y, both=False), self._tiles)
        elif _triton(y):
            from hubplugin import moments_gpu

            moments_gpu.add_product(total, y, self.rows)
        else:
            with products_of(self._stored):
                total.addmm_(_wide(y).T, _wide(self.rows))


class Moment:
    """Accumulates H = sum over tokens of x x^T in float32 (float64 for float64 inputs)."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum: Tensor | None = None
        self._seen = Seen()

    def add(self, x: Tensor | Seen) -> None:
        """Add inputs [..., inputs]."""
        seen = x if isinstance(x, Seen) else self._seen.take(x)
        if self._sum is None:
            self._sum = _zeros(seen.rows, seen.rows.shape[1])
        self.tokens += len(seen.rows)
        seen.add_square(self._sum)

    def matrix(self, where: str) -> Tensor:
        """H [inputs, inputs], the sum itself and no copy: change it only where nothing is added any more.

        Raises CompressError where activations were not finite or nothing was seen.
        """
        found = self._sum
        if found is None:
            raise CompressError(where, "no calibration token reached this layer", "calibrate with more samples")
        for first in range(0, len(found), PANEL):
            last = first + PANEL
            inside = found[first:last, first:last].tril()
            found[first:last, first:last] = inside + inside.tril(-1).T
            found[:first, first:last] = found[first:last, :first].T
        if not bool(torch.isfinite(found.diagonal()).all()):  # no entry is larger than the largest of these
            raise CompressError(
                where,
                "activations are NaN or infinite",
                "the base model overflows on these tokens; check its weights",
            )
        return found


class Drift:
    """What a linear W owes where it is given x: sum (y~ - W x) x^T over tokens.

    y~ is what the base made: W x~ with its own input x~, and, for the end of a part, what the stream that the output is
    added to has lost so far. Elsewhere the sum is kept without W: sum (x~ - x) x^T.
    """

    def __init__(self, weight: Tensor, ends: bool, averages: bool = False) -> None:
        """W [outputs, inputs], which the base has too; whether it is an end; whether `on_average` will be asked."""
        self.tokens = 0
        self._weight, self._ends, self._averages = weight, ends, averages
        self._narrow = weight  # in the dtype of the inputs
        self._sum: Tensor | None = None
        self._missing: Tensor | float = 0.0  # sums over tokens: of what is owed, and of x
        self._inputs: Tensor | float = 0.0

    def add(self, x: Tensor | Seen, base: Tensor, lost: Tensor | None = None) -> None:
        """Add tokens: x [..., inputs], the base's [..., inputs], for an end what was lost [..., outputs]."""
        seen = x if isinstance(x, Seen) else Seen().take(x)
        rows = seen.rows
        missing = base.reshape(rows.shape).to(rows.dtype) - rows
        if self._ends:
            missing = self._made(missing, None if lost is None else lost.reshape(len(rows), -1))
        self.tokens += len(rows)
        if self._averages:
            self._missing, self._inputs = self._missing + _summed(missing), self._inputs + _summed(rows)
        if self._sum is None:
            self._sum = _zeros(rows, missing.shape[1])
        seen.add_product(self._sum, missing)

    def _made(self, inputs: Tensor, lost: Tensor | None) -> Tensor:
        """What W makes of inputs [tokens, inputs], in their dtype, and what was lost."""
        if self._narrow.dtype != inputs.dtype:
            self._narrow = self._weight.to(inputs.dtype)
        with products_of(_half(inputs)):  # what differs is small: three digits of it are enough
            made = inputs @ self._narrow.T
            return made if lost is None else made.add_(lost)

    def keep(self, columns: Tensor) -> None:
        """From now on as if x had these inputs alone, and W the best repair of what that loses."""
        if self._sum is not None:
            self._sum = self._sum[:, columns]

    def on_average(self, made: Tensor, columns: Tensor | None) -> Tensor:
        """What is still owed [outputs], summed over tokens, where `made` stands for W on these columns of x, or all."""
        assert isinstance(self._missing, Tensor) and isinstance(self._inputs, Tensor)
        seen = self._inputs if columns is None else self._inputs[columns]
        missing = self._missing if self._ends else self._weight @ self._missing
        return missing + self._weight @ self._inputs - made.to(seen) @ seen

    def sum(self, share: float = 1.0) -> Tensor:
        """The sum times a share; `owed` makes of it what W owes, of it or of what it became [..., inputs]."""
        assert self._sum is not None
        return self._sum * share

    def owed(self, found: Tensor, every: int = 1) -> Tensor:
        """[outputs, inputs] for every `every`-th output."""
        if self._ends:
            return found[::every]
        with products_of(_half(found)):  # what differs is small: three digits of it are enough
            return self._weight[::every] @ found


def _half(weight: Tensor) -> torch.dtype:
    """The precision in which sums over float32 weights may be taken where three digits are enough."""
    return torch.bfloat16 if weight.dtype == torch.float32 else weight.dtype


def _wide(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()


def _triton(rows: Tensor) -> bool:
    return rows.is_cuda and rows.dtype != torch.float64


def _summed(rows: Tensor) -> Tensor:
    return rows.sum(dim=0, dtype=torch.float64 if rows.dtype == torch.float64 else torch.float32)


def _zeros(rows: Tensor, outputs: int) -> Tensor:
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
        found = x.float().T @ x.float()
    return moments_cpu.lossless(found, x)


@dataclass(frozen=True)
class Factor:
    """H + damping = (M sqrt(D)) (M sqrt(D))^T with M unit upper triangular (research: LDLQ form of GPTQ).

    The error of quantizing W to Q is then sum_k D_k |w_k - q_k|^2 with w_k = W_k + sum_{j<k} (W_j - Q_j) M_jk.
    """

    unit_upper: Tensor  # M [inputs, inputs]
    diagonal: Tensor  # D [inputs]
    damp: float  # share of the mean diagonal that was added
    fallback: str | None  # what was done where the asked-for damping did not do


def without_dead(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """H with 1 on the diagonal of never-excited inputs, and the mask [inputs] of those: a copy where there are any."""
    dead = hessian.diagonal() <= 0
    if not bool(dead.any()):
        return hessian, dead
    hessian = hessian.clone()
    hessian[dead, :] = 0
    hessian[:, dead] = 0
    hessian.diagonal()[dead] = 1
    return hessian, dead


def factor(hessian: Tensor, damp: float, order: Tensor | None = None) -> Factor:
    """Factor H with damping, climbing a ladder where it is not positive definite; never silently.

    With an order int64 [inputs], of H with its rows and columns in that order. Ladder: the damping asked for; ten times
    more, up to the mean diagonal; a floor of the largest diagonal entry; the diagonal alone (rounding weighted by the
    inputs' energy).
    """
    order = torch.arange(len(hessian), device=hessian.device) if order is None else order
    mean = hessian.diagonal().mean()
    tries = [damp]
    while tries[-1] < 1:
        tries.append(min(1.0, tries[-1] * 10))
    for tried in tries:
        made = _factored(hessian, tried * mean, order)
        if made is not None:
            return Factor(*made, tried, None if tried == damp else f"damping raised from {damp:g} to {tried:g}")
    floor = hessian.diagonal().max()
    made = _factored(hessian, floor, order)
    if made is not None:
        return Factor(*made, float(floor / mean), "damping raised to the largest second moment")
    diagonal = hessian.diagonal()[order].clamp(min=float(mean) * damp if mean > 0 else 1.0)
    return Factor(
        torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device),
        diagonal,
        damp,
        "not positive definite: rounded to nearest, without error feedback",
    )


def _factored(hessian: Tensor, added: Tensor | float, order: Tensor) -> tuple[Tensor, Tensor] | None:
    """M and D of H + added I in that order, or None. M sqrt(D) is the lower factor of the reversed matrix, reversed."""
    backwards = order.flip(0)
    damped = hessian.index_select(0, backwards).index_select(1, backwards)
    damped.diagonal().add_(added)
    lower, info = torch.linalg.cholesky_ex(damped)
    diagonal = lower.diagonal().flip(0)
    if int(info) != 0 or not bool(torch.isfinite(diagonal).all()):
        return None
    upper = damped  # its memory
    for first in range(0, len(upper), PANEL):
        last = min(first + PANEL, len(upper))
        rows = lower[len(lower) - last : len(lower) - first]
        torch.div(rows.flip(0, 1), diagonal, out=upper[first:last])
    return upper, diagonal**2


def divided(right: Tensor, factor: Factor) -> Tensor:
    """X with X (H + damping) = right [rows, inputs], by the factor of H."""
    upper = factor.unit_upper
    half = torch.linalg.solve_triangular(upper, right.T, upper=True, unitriangular=True)
    half /= factor.diagonal[:, None]
    return torch.linalg.solve_triangular(upper.T, half, upper=False, unitriangular=True).T


def damped(hessian: Tensor, damp: float) -> Tensor:
    """H + damp * mean diagonal, as a new matrix."""
    out = hessian.clone()
    out.diagonal().add_(damp * hessian.diagonal().mean())
    return out


def inverse(hessian: Tensor, where: str) -> Tensor:
    """H^-1 of a damped H. Raises CompressError where it is not positive definite."""
    return torch.cholesky_inverse(_lower(hessian, where))


def solve(hessian: Tensor, right: Tensor, where: str) -> Tensor:
    """X with X H = right, for damped symmetric H [n, n] and right [rows, n]. Raises CompressError as `inverse`."""
    return torch.cholesky_solve(right.T, _lower(hessian, where)).T


def _lower(hessian: Tensor, where: str) -> Tensor:
    lower, info = torch.linalg.cholesky_ex(hessian)
    if int(info) != 0:
        raise CompressError(where, "second moments are not positive definite", "raise `damp:` or calibrate with more")
    return lower


def energy(weight: Tensor, hessian: Tensor) -> float:
    """tr(W H W^T): the energy of the output W x over the calibration tokens. W [outputs, inputs].

    Good to three digits in float32: both are rounded to bfloat16 where that is fast.
    """
    with products_of(_half(weight)):
        return inner(weight @ hessian, weight)


def inner(one: Tensor, other: Tensor) -> float:
    """Sum of the products, entry by entry."""
    return float(torch.dot(one.reshape(-1), other.reshape(-1)))


LOSS_ROWS = 256  # outputs over which a loss is taken, evenly spaced where there are more


def spaced(outputs: int) -> int:
    """The distance between outputs that count where a loss is taken."""
    return -(-outputs // LOSS_ROWS)


def relative_loss(before: Tensor, after: Tensor, hessian: Tensor) -> float:
    """tr((W-W')H(W-W')^T) / tr(W H W^T): 0.01 means one percent of the output's energy became error.

    Of LOSS_ROWS evenly spaced outputs where there are more.
    """
    every = spaced(len(before))
    before, after = before[::every], after[::every]
    whole = energy(before, hessian)
    return energy(before - after, hessian) / whole if whole > 0 else 0.0
