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

PIECE = 2**20  # weights at once: each needs some twenty bytes meanwhile


def stored(weights: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Copies of float32 weights by name, in the dtypes of these names. Chance depends on a weight's name alone."""
    return {name: rounded(weight, dtypes[name], seed(name)) for name, weight in weights.items()}


def seed(name: str) -> int:
    """The seed of a tensor's chance."""
    return zlib.crc32(name.encode())


def rounded(weight: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """A copy of a float32 tensor in a floating-point dtype; what that dtype has is kept as it is."""
    if dtype.itemsize >= weight.dtype.itemsize:
        return weight.to(dtype, copy=True)
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    generator = torch.Generator().manual_seed(seed)
    for part, room in zip(weight.flatten().split(PIECE), out.view(-1).split(PIECE), strict=True):
        nearest = part.to(dtype)
        off = part - nearest.to(part.dtype)
        beyond = torch.nextafter(nearest, torch.where(off > 0, torch.inf, -torch.inf).to(dtype))
        step = (beyond.to(part.dtype) - nearest.to(part.dtype)).abs_()
        draws = torch.rand(part.shape, generator=generator).to(part.device)
        room.copy_(torch.where(draws * step < off.abs(), beyond, nearest))
    return out
