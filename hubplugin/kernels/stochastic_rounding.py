"""Rounding of trained weights to the dtype in which they are stored, up or down by chance, so that no update is lost.

A model is published in 16 bits and trained from there by updates that are mostly smaller than half a step of bfloat16.
The nearest number would be the one it came with. Here a weight x between the neighbours l < u becomes u with
probability (x - l) / (u - l): its expectation is x, and what thousands of weights have learnt together stays. The noise
has at most half a step's standard deviation (Gupta et al., arXiv 1502.02551). Knows tensors alone.
"""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor


def stored(weights: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Copies of float32 weights by name, in the dtypes of these names. Chance depends on a weight's name alone."""
    return {name: rounded(weight, dtypes[name], zlib.crc32(name.encode())) for name, weight in weights.items()}


def rounded(weight: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """A copy of a float32 tensor in a floating-point dtype; what that dtype has is kept as it is."""
    nearest = weight.to(dtype, copy=True)
    if dtype.itemsize >= weight.dtype.itemsize:
        return nearest
    off = weight - nearest.to(weight.dtype)
    beyond = torch.nextafter(nearest, torch.where(off > 0, torch.inf, -torch.inf).to(dtype))
    step = (beyond.to(weight.dtype) - nearest.to(weight.dtype)).abs_()
    draws = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)).to(weight.device)
    return torch.where(draws * step < off.abs_(), beyond, nearest)
