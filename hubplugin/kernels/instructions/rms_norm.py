"""Root-mean-square norms of bfloat16 activations on a CPU, in one pass over memory; transformers' modules take six.

A module is taken over only where its class was tried and gives the same but for the last bit of a bfloat16 number.
Knows no family: whatever divides by the root of the mean square plus epsilon in float32, rounds, and multiplies by a
weight vector.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from hubplugin.kernels.instructions.bits import bits, narrow, wide
from hubplugin.kernels.threads import spread

TRIED = 64  # rows, and numbers in a row
ONE_BIT = 2**-7  # the last bit of a bfloat16 number is at most this share of it


def install(module: nn.Module) -> None:
    """Let the norms inside a module that computes in bfloat16 on a CPU run in one pass."""
    for inner in module.modules():
        kind: Any = type(inner)
        if _epsilon(inner) and _alike(kind):
            inner.__class__ = _fused(kind)


def _epsilon(module: Any) -> float:
    """What a norm adds to the mean square; 0 for what has other parameters than one vector, or no such number."""
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    vector = [name for name, _ in module.named_parameters()] == ["weight"] and module.weight.dim() == 1
    return found if vector and isinstance(found, float) else 0.0


@cache
def _fused(kind: Any) -> Any:
    def forward(self: Any, hidden: Tensor) -> Tensor:
        if hidden.dtype != torch.bfloat16:
            return kind.forward(self, hidden)
        return normalized(hidden, self.weight, _epsilon(self))

    return type(kind.__name__, (kind,), {"forward": forward})


@cache
def _alike(kind: Any) -> bool:
    """Whether a class of norms does what `normalized` does."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(TRIED, TRIED, generator=generator) * 3).bfloat16()
    try:
        norm: Any = kind(TRIED)
    except TypeError:
        return False
    norm = norm.to(torch.bfloat16)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(TRIED, generator=generator) + 0.5)
        theirs, ours = norm(x), normalized(x, norm.weight, _epsilon(norm))
    return theirs.dtype == x.dtype and torch.allclose(ours.float(), theirs.float(), rtol=ONE_BIT, atol=0)


def normalized(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """bfloat16 [..., width]: x / sqrt(mean x^2 + epsilon), rounded to bfloat16, times weight [width] in bfloat16."""
    rows = hidden.contiguous()
    out = torch.empty_like(rows)
    flat = [bits(tensor).reshape(-1, rows.shape[-1]) for tensor in (rows, out)]
    spread(_normalize, len(flat[0]), *flat, bits(weight), np.float32(epsilon))
    return out


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc"}, error_model="numpy")
def _normalize(first, last, rows, out, weight, epsilon):  # type: ignore[no-untyped-def]
    """Rows first .. last, as bits. Sums may be taken in any order: they would not vectorise otherwise."""
    width = rows.shape[1]
    for row in range(first, last):
        given, made, total = rows[row], out[row], np.float32(0)
        for place in range(width):
            total += wide(given[place]) * wide(given[place])
        scale = np.float32(1) / np.sqrt(total / np.float32(width) + epsilon)
        for place in range(width):
            unit = wide(narrow(wide(given[place]) * scale))
            made[place] = np.uint16(narrow(unit * wide(weight[place])))
