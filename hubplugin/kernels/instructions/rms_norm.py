"""Root-mean-square norms of activations on a CPU, in one pass over memory; transformers' modules take six.

A module is taken over only where its class was tried and gives the same but for the last bits of a number. Knows no
family: whatever divides by the root of the mean square plus epsilon in float32, rounds to the activations' dtype, and
multiplies by a weight vector.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubplugin.kernels.instructions.bits import narrow, numbers, wide
from hubplugin.kernels.instructions.panel_products import learns
from hubplugin.kernels.logit_rows import any_order
from hubplugin.kernels.threads import spread

TRIED = 64  # rows, and numbers in a row
ONE_PASS = "one_pass"  # an attribute of classes made here
LAST_BITS = {torch.bfloat16: 2**-7, torch.float32: 2**-21}  # at most this share of a number


def install(module: nn.Module) -> None:
    """Let the norms inside a module that computes in bfloat16 or float32 on a CPU run in one pass."""
    for inner in module.modules():
        kind: Any = type(inner)
        if _epsilon(inner) and not hasattr(kind, ONE_PASS) and all(_alike(kind, dtype) for dtype in LAST_BITS):
            inner.__class__ = _fused(kind)


def _epsilon(module: Any) -> float:
    """What a norm adds to the mean square; 0 for what has other parameters than one vector, or no such number."""
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    vector = [name for name, _ in module.named_parameters()] == ["weight"] and module.weight.dim() == 1
    return found if vector and isinstance(found, float) else 0.0


@cache
def _fused(kind: Any) -> Any:
    def forward(self: Any, hidden: Tensor) -> Tensor:
        if hidden.dtype not in LAST_BITS or hidden.dtype != self.weight.dtype or learns(hidden) or learns(self.weight):
            return kind.forward(self, hidden)
        return normalized(hidden, self.weight, _epsilon(self))

    return type(kind.__name__, (kind,), {"forward": forward, ONE_PASS: True})


@cache
def _alike(kind: Any, dtype: torch.dtype) -> bool:
    """Whether a class of norms does what `normalized` does."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(TRIED, TRIED, generator=generator) * 3).to(dtype)
    try:
        norm: Any = kind(TRIED)
    except TypeError:
        return False
    norm = norm.to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(TRIED, generator=generator) + 0.5)
        theirs, ours = norm(x), normalized(x, norm.weight, _epsilon(norm))
    return theirs.dtype == dtype and torch.allclose(ours.float(), theirs.float(), rtol=LAST_BITS[dtype], atol=0)


def normalized(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean x^2 + epsilon) of [..., width], rounded to its dtype, times weight [width] in that: the dtype."""
    rows = hidden.contiguous()
    out = torch.empty_like(rows)
    flat = [numbers(tensor).reshape(-1, rows.shape[-1]) for tensor in (rows, out)]
    kernel = _normalize if rows.dtype == torch.float32 else _normalize_bits
    spread(kernel, len(flat[0]), *flat, numbers(weight), np.float32(epsilon))
    return out


@any_order
def _normalize(first, last, rows, out, weight, epsilon):  # type: ignore[no-untyped-def]
    """Rows first .. last of float32."""
    for row in range(first, last):
        given, made, total = rows[row], out[row], np.float32(0)
        for place in range(len(weight)):
            total += given[place] * given[place]
        scale = np.float32(1) / np.sqrt(total / np.float32(len(weight)) + epsilon)
        for place in range(len(weight)):
            made[place] = given[place] * scale * weight[place]


@any_order
def _normalize_bits(first, last, rows, out, weight, epsilon):  # type: ignore[no-untyped-def]
    """The same of bfloat16, as bits."""
    for row in range(first, last):
        given, made, total = rows[row], out[row], np.float32(0)
        for place in range(len(weight)):
            total += wide(given[place]) * wide(given[place])
        scale = np.float32(1) / np.sqrt(total / np.float32(len(weight)) + epsilon)
        for place in range(len(weight)):
            unit = wide(narrow(wide(given[place]) * scale))
            made[place] = np.uint16(narrow(unit * wide(weight[place])))
