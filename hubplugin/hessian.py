"""Second moments of a linear's inputs, their damping and their one factorisation. The only Cholesky in the house.

Conventions: X is [tokens, inputs], H = X^T X (the 2/N of the papers cancels everywhere: damping is relative).
Knows no bits, no masks and no modules.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hubplugin.errors import CompressError


class Moment:
    """Accumulates H = sum over tokens of x x^T in float32 (float64 for float64 inputs)."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Add inputs [..., inputs]; half precisions are widened first, their products are then exact."""
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if self._sum is None:
            self._sum = torch.zeros(rows.shape[1], rows.shape[1], dtype=rows.dtype, device=rows.device)
        self._sum.addmm_(rows.T, rows)
        self.tokens += rows.shape[0]

    def matrix(self, where: str) -> Tensor:
        """H [inputs, inputs]. Raises CompressError where activations were not finite or nothing was seen."""
        if self._sum is None:
            raise CompressError(where, "no calibration token reached this layer", "calibrate with more samples")
        if not bool(torch.isfinite(self._sum).all()):
            raise CompressError(
                where,
                "activations are NaN or infinite",
                "the base model overflows on these tokens; check its weights",
            )
        return self._sum


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
    """A copy of H whose never-excited inputs have a 1 on the diagonal, and the mask [inputs] of those inputs."""
    dead = hessian.diagonal() <= 0
    hessian = hessian.clone()
    hessian[dead, :] = 0
    hessian[:, dead] = 0
    hessian.diagonal()[dead] = 1
    return hessian, dead


def factor(hessian: Tensor, damp: float) -> Factor:
    """Factor H with damping, climbing a ladder where it is not positive definite; never silently.

    Ladder: the damping asked for; ten times more, up to the mean diagonal; a floor of the largest diagonal entry;
    the diagonal alone (rounding weighted by the inputs' energy).
    """
    mean = hessian.diagonal().mean()
    tries = [damp]
    while tries[-1] < 1:
        tries.append(min(1.0, tries[-1] * 10))
    for tried in tries:
        upper = _upper(hessian, tried * mean)
        if upper is not None:
            return _unit(upper, tried, None if tried == damp else f"damping raised from {damp:g} to {tried:g}")
    floor = hessian.diagonal().max()
    upper = _upper(hessian, floor)
    if upper is not None:
        return _unit(upper, float(floor / mean), "damping raised to the largest second moment")
    diagonal = hessian.diagonal().clamp(min=float(mean) * damp if mean > 0 else 1.0)
    return Factor(
        torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device),
        diagonal,
        damp,
        "not positive definite: rounded to nearest, without error feedback",
    )


def _upper(hessian: Tensor, added: Tensor | float) -> Tensor | None:
    """Upper triangular R with H + added I = R R^T, or None. It is the lower factor of the reversed matrix."""
    damped = hessian.clone()
    damped.diagonal().add_(added)
    lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if int(info) != 0 or not bool(torch.isfinite(lower).all()):
        return None
    return lower.flip(0, 1)


def _unit(upper: Tensor, damp: float, fallback: str | None) -> Factor:
    diagonal = upper.diagonal()
    return Factor(upper / diagonal, diagonal**2, damp, fallback)


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
    """tr(W H W^T): the energy of the output W x over the calibration tokens. W [outputs, inputs]."""
    return float(((weight @ hessian) * weight).sum())


def relative_loss(before: Tensor, after: Tensor, hessian: Tensor) -> float:
    """tr((W-W')H(W-W')^T) / tr(W H W^T): 0.01 means one percent of the output's energy became error."""
    whole = energy(before, hessian)
    return energy(before - after, hessian) / whole if whole > 0 else 0.0
