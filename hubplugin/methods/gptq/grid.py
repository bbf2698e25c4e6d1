"""The uniform grid: fit a scale (and a zero), snap to it. Knows no second moments beyond a weight per input.

A scale is rounded, before anything is snapped to it, to a value that float16 and bfloat16 both hold exactly: the
checkpoint stores float16, engines cast it to the model's dtype, and the codes must mean the same in both.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

HIGHEST, LOWEST = (
    1.10,
    {2: 0.34, 3: 0.46, 4: 0.56, 8: 0.94},
)  # ratios of the full range worth trying, by bits; see docs/maths.md
LOWEST_OF_LONG = 0.40  # or less, in groups of more than LONG inputs: one outlier there is far from the rest
LONG = 128
SMALLEST_SCALE = 2.0**-20
LARGEST_SCALE = 60000.0


@dataclass(frozen=True)
class Spec:
    """A grid before it is fitted."""

    bits: int
    group_size: int  # inputs per group; never -1 here
    symmetric: bool = True  # the zero is 2^(bits-1); otherwise every group has its own
    shares: tuple[float, ...] = ()  # of the full range, tried by `fit`; a negative one mirrors a symmetric grid

    @property
    def top(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero of a symmetric grid."""
        return int(2 ** (self.bits - 1))


def shrinking(bits: int, group_size: int) -> tuple[float, ...]:
    """Shares of the full range that a search of scales tries, from the largest down in steps of 0.02."""
    lowest = LOWEST[bits] if group_size <= LONG else min(LOWEST[bits], LOWEST_OF_LONG)
    return tuple(HIGHEST - 0.02 * step for step in range(round((HIGHEST - lowest) / 0.02) + 1))


def storable(scale: Tensor) -> Tensor:
    """The nearest value that float16 and bfloat16 both represent, at least SMALLEST_SCALE in size; dtype unchanged."""
    size = scale.abs().clamp(min=SMALLEST_SCALE, max=LARGEST_SCALE)
    return size.copysign(scale).to(torch.bfloat16).to(torch.float16).to(scale.dtype)


def codes(weight: Tensor, scale: Tensor, zero: Tensor | int, top: int) -> Tensor:
    """Codes 0 .. top (as floats) of weight [..., n] for scale and zero broadcastable to it."""
    return torch.clamp(torch.round(weight / scale) + zero, 0, top)


def fit(weight: Tensor, importance: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """One scale and one zero (as floats) per row: weight [rows, n], importance [n] -> [rows], [rows].

    The full range first: the largest weight (symmetric), or both ends (asymmetric), land on the grid's end. Then every
    share of it that `spec` names; the first with the least sum_j importance_j (w_j - q_j)^2 wins.
    """
    best_scale, best_zero = _candidate(weight, 1.0, spec)
    if not spec.shares:
        return best_scale, best_zero
    least = _error(weight, best_scale, best_zero, importance, spec)
    for share in spec.shares:
        scale, zero = _candidate(weight, share, spec)
        error = _error(weight, scale, zero, importance, spec)
        better = error < least
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        least = torch.where(better, error, least)
    return best_scale, best_zero


def _candidate(weight: Tensor, share: float, spec: Spec) -> tuple[Tensor, Tensor]:
    """Scale and zero [rows] for one share of the full range."""
    if spec.symmetric:
        scale = storable(weight.abs().amax(dim=1) / (spec.middle - 0.5) * share)
        return scale, torch.full_like(scale, spec.middle)
    low, high = weight.amin(dim=1).clamp(max=0), weight.amax(dim=1).clamp(min=0)
    scale = storable((high - low) / spec.top * share)
    return scale, torch.clamp(torch.round(-low * share / scale), 0, spec.top)


def _error(weight: Tensor, scale: Tensor, zero: Tensor, importance: Tensor, spec: Spec) -> Tensor:
    steps = weight * (1 / scale[:, None])
    snapped = torch.minimum(torch.maximum(torch.round(steps), -zero[:, None]), spec.top - zero[:, None])
    return ((snapped - steps).square_() @ importance) * scale**2
