"""The symmetric uniform grid: fit a scale, snap to it. Knows no second moments beyond a weight per input.

A scale is rounded, before anything is snapped to it, to a value that float16 and bfloat16 both hold exactly: the
checkpoint stores float16, engines cast it to the model's dtype, and the codes must mean the same in both.
"""

import torch
from torch import Tensor

SHRINK = tuple(1.10 - 0.02 * step for step in range(36))  # 1.10 .. 0.40 of the largest weight
SMALLEST_SCALE = 2.0**-20


def storable(scale: Tensor) -> Tensor:
    """The nearest value that float16 and bfloat16 both represent, at least SMALLEST_SCALE; dtype unchanged."""
    stored = scale.clamp(min=SMALLEST_SCALE, max=60000.0).to(torch.bfloat16).to(torch.float16)
    return stored.to(scale.dtype)


def codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Codes 0 .. 2^bits - 1 (as floats) of weight [..., n] for scale broadcastable to it."""
    zero = 2 ** (bits - 1)
    return torch.clamp(torch.round(weight / scale) + zero, 0, 2**bits - 1)


def values(code: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The weights that codes stand for."""
    return scale * (code - 2 ** (bits - 1))


def fit(weight: Tensor, importance: Tensor, bits: int, search: bool) -> Tensor:
    """One scale per row: weight [rows, n], importance [n] -> [rows].

    Without search, the largest weight lands on the grid's end. With search, the candidate with the least
    sum_j importance_j (w_j - q_j)^2 among shares of that scale.
    """
    largest = weight.abs().amax(dim=1) / (2 ** (bits - 1) - 0.5)
    best = storable(largest)
    if not search:
        return best
    least = _error(weight, best, importance, bits)
    for share in SHRINK:
        scale = storable(largest * share)
        error = _error(weight, scale, importance, bits)
        better = error < least
        best = torch.where(better, scale, best)
        least = torch.where(better, error, least)
    return best


def _error(weight: Tensor, scale: Tensor, importance: Tensor, bits: int) -> Tensor:
    scale = scale[:, None]
    return (values(codes(weight, scale, bits), scale, bits) - weight).square_() @ importance
