"""Rotary position embedding (arXiv 2104.09864) on a CPU in one pass over memory; transformers' functions take six.

An attention module is taken over only where its own function was tried and gives the same but for the last bits of a
number. Knows no family: whatever calls `apply_rotary_pos_emb` of its module on queries and keys.
"""

import inspect
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubplugin.kernels.instructions.bits import narrow, numbers, wide
from hubplugin.kernels.instructions.panel_products import learns
from hubplugin.kernels.instructions.rms_norm import ONE_PASS
from hubplugin.kernels.threads import compiled, spread

NAME = "apply_rotary_pos_emb"
TRIED = (2, 3, 8, 16)  # sequences, heads, tokens and dimensions
LAST_BITS = {torch.bfloat16: 2**-5, torch.float32: 2**-20}  # of numbers near 1; transformers rounds three times

Rotate = Callable[..., tuple[Tensor, Tensor]]


def install(module: nn.Module) -> None:
    """Let attention inside a module that computes in bfloat16 or float32 on a CPU rotate in one pass."""
    for inner in module.modules():
        kind: Any = type(inner)
        if not hasattr(kind, ONE_PASS) and (made := _fused(kind)):
            inner.__class__ = made


@cache
def _fused(kind: Any) -> Any:
    """A class of attention with our function in place of its own; None: it has none, or one that does other things."""
    forward = kind.forward
    own = forward.__globals__.get(NAME) if inspect.isfunction(forward) and NAME in forward.__code__.co_names else None
    if own is None or not _alike(own):
        return None
    seen = {**forward.__globals__, NAME: _in_one_pass(own)}
    made = FunctionType(forward.__code__, seen, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    return type(kind.__name__, (kind,), {"forward": made, ONE_PASS: True})


def _in_one_pass(own: Rotate) -> Rotate:
    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *other: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if other or named or not all(_fits(each, cos, sin) for each in (q, k)):
            return own(q, k, cos, sin, *other, **named)
        return rotated(q, cos, sin), rotated(k, cos, sin)

    return rotate


def _fits(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether `rotated` takes them."""
    same = x.dtype == cos.dtype == sin.dtype and x.dtype in LAST_BITS and x.device.type == "cpu"
    shapes = x.dim() == 4 and cos.shape == sin.shape == (len(cos), *x.shape[2:])
    return same and shapes and len(cos) in (1, len(x)) and not any(map(learns, (x, cos, sin)))


@cache
def _alike(own: Rotate) -> bool:
    """Whether a function does what `rotated` does."""
    generator = torch.Generator().manual_seed(0)
    sequences, heads, tokens, width = TRIED
    for dtype, bits in LAST_BITS.items():
        x = torch.randn(sequences, heads, tokens, width, generator=generator).to(dtype)
        angles = torch.rand(sequences, tokens, width, generator=generator)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        try:
            theirs = own(x, x[:, :1], cos, sin)
        except (TypeError, ValueError, RuntimeError):
            return False
        ours = rotated(x, cos, sin), rotated(x[:, :1], cos, sin)
        if not all(
            torch.allclose(one.float(), each.float(), bits, bits) for one, each in zip(ours, theirs, strict=True)
        ):
            return False
    return True


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (-x_2, x_1) sin, where x_1 and x_2 are the halves of each head's dimensions; rounded once, to x's dtype.

    Queries or keys [batch, heads, tokens, dimensions]; cos and sin [batch or 1, tokens, dimensions]. The result lies in
    memory as [batch, tokens, heads, dimensions].
    """
    rows = x.transpose(1, 2).contiguous().flatten(0, 1)  # as linears make them, so that nothing is copied
    out, angles = torch.empty_like(rows), [numbers(each.float().flatten(0, 1)) for each in (cos, sin)]
    rotate = _rotate if x.dtype == torch.float32 else _rotate_bits
    spread(rotate, len(rows), numbers(rows), *angles, numbers(out))
    return out.view(len(x), -1, *out.shape[1:]).transpose(1, 2)


@compiled
def _rotate(first, last, x, cos, sin, out):  # type: ignore[no-untyped-def]
    """Rows first .. last of float32 [sequences x tokens, heads, dimensions].

    Places are unsigned: a loop over places that may be negative, which count from the end, becomes no vector code.
    """
    width, half = np.uintp(x.shape[2]), np.uintp(x.shape[2] // 2)
    for row in range(np.uintp(first), np.uintp(last)):
        token = row % np.uintp(len(cos))
        for head in range(np.uintp(x.shape[1])):
            for one in range(half):
                out[row, head, one] = x[row, head, one] * cos[token, one] - x[row, head, one + half] * sin[token, one]
            for one in range(half, width):
                out[row, head, one] = x[row, head, one] * cos[token, one] + x[row, head, one - half] * sin[token, one]


@compiled
def _rotate_bits(first, last, x, cos, sin, out):  # type: ignore[no-untyped-def]
    """The same of bfloat16, as bits; cos and sin are float32."""
    width, half = np.uintp(x.shape[2]), np.uintp(x.shape[2] // 2)
    for row in range(np.uintp(first), np.uintp(last)):
        token = row % np.uintp(len(cos))
        for head in range(np.uintp(x.shape[1])):
            for one in range(half):
                turned = wide(x[row, head, one]) * cos[token, one] - wide(x[row, head, one + half]) * sin[token, one]
                out[row, head, one] = np.uint16(narrow(turned))
            for one in range(half, width):
                turned = wide(x[row, head, one]) * cos[token, one] + wide(x[row, head, one - half]) * sin[token, one]
                out[row, head, one] = np.uint16(narrow(turned))
