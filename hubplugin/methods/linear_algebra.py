"""Damping and the one factorisation of second moments, and the losses measured with them. The only Cholesky.

Conventions: X is [tokens, inputs], H = X^T X (the 2/N of the papers cancels everywhere: damping is relative).
Knows no bits, no masks and no modules.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hubplugin.errors import CompressError
from hubplugin.kernels import products
from hubplugin.kernels.second_moments import PANEL


@dataclass(frozen=True)
class Factor:
    """H + damping = (M sqrt(D)) (M sqrt(D))^T with M unit upper triangular (research: LDLQ form of GPTQ).

    The error of quantizing W to Q is then sum_k D_k |w_k - q_k|^2 with w_k = W_k + sum_{j<k} (W_j - Q_j) M_jk.
    """

    unit_upper: Tensor  # M [inputs, inputs]
    diagonal: Tensor  # D [inputs]
    damp: float  # added to the diagonal, relative to its mean
    fallback: str | None  # what replaced the damping asked for, in words; None: nothing


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
        factored = _factored(hessian, tried * mean, order)
        if factored is not None:
            return Factor(*factored, tried, None if tried == damp else f"damping raised from {damp:g} to {tried:g}")
    floor = hessian.diagonal().max()
    factored = _factored(hessian, floor, order)
    if factored is not None:
        return Factor(*factored, float(floor / mean), "damping raised to the largest second moment")
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
    lower: Tensor
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
    half: Tensor = torch.linalg.solve_triangular(upper, right.T, upper=True, unitriangular=True)
    half /= factor.diagonal[:, None]
    solution: Tensor = torch.linalg.solve_triangular(upper.T, half, upper=False, unitriangular=True)
    return solution.T


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
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(hessian)
    if int(info) != 0:
        raise CompressError(where, "second moments are not positive definite", "raise `damp:` or calibrate with more")
    return lower


def energy(weight: Tensor, hessian: Tensor) -> float:
    """tr(W H W^T): the energy of the output W x over the calibration tokens. W [outputs, inputs].

    Good to three digits in float32: both are rounded to bfloat16 where that is fast.
    """
    return inner(products.rough(weight, hessian), weight)


def inner(left: Tensor, right: Tensor) -> float:
    """Sum of the products, entry by entry."""
    return float(torch.dot(left.reshape(-1), right.reshape(-1)))


LOSS_ROWS = 256  # outputs over which a loss is taken, evenly spaced where there are more


def spaced(outputs: int) -> int:
    """The distance between outputs that count where a loss is taken."""
    return -(-outputs // LOSS_ROWS)


def relative_loss(before: Tensor, after: Tensor, hessian: Tensor) -> float:
    """tr((W-W')H(W-W')^T) / tr(W H W^T): 0.01 means one percent of the output's energy became error.

    Of LOSS_ROWS evenly spaced outputs where there are more.
    """
    step = spaced(len(before))
    before, after = before[::step], after[::step]
    original = energy(before, hessian)
    return energy(before - after, hessian) / original if original > 0 else 0.0


@dataclass(frozen=True)
class Prepared:
    """Second moments, an order in which columns are visited, and the factor of these."""

    alive: Tensor  # second moments [inputs, inputs], with 1 on the diagonal of dead inputs
    dead: Tensor  # bool [inputs]
    order: Tensor  # int64 [inputs]
    factor: Factor


def prepare(hessian: Tensor, damp: float) -> Prepared:
    """Factor second moments [inputs, inputs] of the dtype to compute in, columns as they stand."""
    alive, dead = without_dead(hessian)
    order = torch.arange(len(alive), device=alive.device)
    return Prepared(alive, dead, order, factor(alive, damp, order))
