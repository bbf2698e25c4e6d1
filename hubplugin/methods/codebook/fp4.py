"""NVFP4's levels: FP4's 15 numbers times a scale in float8 (e4m3), one for 16 inputs, and a divisor of all scales.

Only the scales are chosen. Knows numbers and what NVFP4 stores; no second moments beyond a weight per input.
"""

from math import floor, log2

import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import E2M1

LARGEST_SCALE, SMALLEST_SCALE = 448.0, 2.0**-6  # of e4m3's normal numbers: vLLM's Marlin kernel flushes smaller ones
HEADROOM = 2.0  # error feedback makes some weights larger than any was
ABOVE, BELOW = 1, 8  # e4m3 numbers that are tried above and below the one that puts a group's largest weight on 6
LEVELS = tuple(sorted({*E2M1, *(-value for value in E2M1)}))
CODES = tuple(E2M1.index(abs(level)) + 8 * (level < 0) for level in LEVELS)  # FP4's code of each level


def divisor_of(weight: Tensor) -> float:
    """What the scales of weight [outputs, inputs] are stored times: a power of two, so that all products are exact."""
    largest = float(weight.abs().max()) * HEADROOM / E2M1[-1]
    return 2.0 ** floor(log2(LARGEST_SCALE / largest)) if largest > 0 else 1.0


def fit(weight: Tensor, importance: Tensor, divisor: float) -> Tensor:
    """Ascending levels [rows, 15] of weight [rows, n], with the scale of the least sum_j importance_j (w_j - q_j)^2."""
    table = torch.tensor(LEVELS, dtype=weight.dtype, device=weight.device)
    between = (table[1:] + table[:-1]) / 2
    weight = weight.contiguous()
    full = _e4m3(weight.abs().amax(dim=1) / E2M1[-1] * divisor).view(torch.uint8).int()
    best, least = None, None
    for number in range(ABOVE, -BELOW - 1, -1):
        scale = _scale(full + number).to(weight.dtype) / divisor
        steps = weight / scale[:, None]
        off = table[torch.bucketize(steps, between)] - steps
        error = (off.square_() @ importance) * scale**2
        if best is None or least is None:
            best, least = scale, error
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    assert best is not None
    return best[:, None] * table


def scales_of(levels: Tensor, divisor: float) -> Tensor:
    """The scales float8_e4m3fn [...] of levels [..., 15], which are stored times the divisor."""
    return (levels[..., -1] / E2M1[-1] * divisor).to(torch.float8_e4m3fn)


def codes_of(codes: Tensor) -> Tensor:
    """FP4's codes of codes that number the levels, uint8."""
    return torch.tensor(CODES, dtype=torch.uint8, device=codes.device)[codes.int()]


def _e4m3(scale: Tensor) -> Tensor:
    return scale.float().clamp(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float8_e4m3fn)


def _scale(number: Tensor) -> Tensor:
    """The scale float32 that is the e4m3 number of these bits: neighbours differ by one."""
    return _e4m3(number.clamp(min=0, max=0x7E).to(torch.uint8).view(torch.float8_e4m3fn).float()).float()
