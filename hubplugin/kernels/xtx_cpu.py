"""Sums over tokens on a CPU with a matrix unit: the lower triangle of X^T X, half the work of a product; and Y^T X.

Activations are packed into tiles once and serve all sums they go into. Nothing is lost that a float32 product of the
same bfloat16 numbers would keep; whether that holds on this machine is tried out before. Knows no model and no method.
"""

import copy
import math
from functools import cache
from typing import Self

import numpy as np
import torch
from llvmlite import binding
from torch import Tensor

from hubplugin.kernels import amx
from hubplugin.kernels.amx import DEEP, PANEL, SIXTEEN
from hubplugin.kernels.threads import bits, spread


def fits(x: Tensor) -> bool:
    """Whether products of such activations [..., features] are taken here."""
    plain = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    return plain and x.shape[-1] % PANEL == 0 and works()


class Tiles:
    """Activations as tiles for either side of a product; `fill` replaces them and keeps the memory."""

    def __init__(self) -> None:
        self.begin = self.end = 0  # the depths that count
        self.left = self.right = np.empty(0, dtype=np.uint32)  # [panels, depths, 2, 16, 16], a tile and its transpose
        self._memory = [self.left, self.right]

    def fill(self, rows: Tensor, both: bool = True) -> Self:
        """Take rows bfloat16 [tokens, features]; for the left side only where not `both`."""
        tokens, features = rows.shape
        shape = features // PANEL, -(-tokens // DEEP), 2, SIXTEEN, SIXTEEN
        self.left = self._space(0, shape)
        self.right = self._space(1, shape) if both else self.right
        self.begin, self.end = 0, shape[1]
        whole = tokens // DEEP * DEEP
        self._pack(rows[:whole].contiguous(), 0, both)
        if whole < tokens:
            last = rows.new_zeros(DEEP, features)
            last[: tokens - whole] = rows[whole:]
            self._pack(last, whole // DEEP, both)
        return self

    def _space(self, side: int, shape: tuple[int, ...]) -> np.ndarray:
        size = math.prod(shape)
        if len(self._memory[side]) < size:  # torch aligns to lines of the cache, numpy does not
            self._memory[side] = torch.empty(size, dtype=torch.int32).numpy().view(np.uint32)
        return self._memory[side][:size].reshape(shape)

    def _pack(self, rows: Tensor, before: int, both: bool) -> None:
        spread(amx.pack, len(self.left), bits(rows), before, both, self.left, self.right if both else self.left)

    def part(self, first: int, last: int) -> "Tiles | None":
        """These tokens of all, in the same memory; None where a tile has others too."""
        if first % DEEP or last % DEEP:
            return None
        found = copy.copy(self)
        found.begin, found.end = first // DEEP, last // DEEP
        return found


def add_lower(total: Tensor, x: Tiles) -> None:
    """total += x^T x on and below the diagonal; total [features, features] float32, contiguous.

    Above the diagonal some sums are complete, others are not: read nothing there.
    """
    _add(total, x, x, lower=True)


def add_product(total: Tensor, left: Tiles, right: Tiles) -> None:
    """total += left^T right, of as many tokens each; total float32, contiguous."""
    _add(total, left, right, lower=False)


def _add(total: Tensor, left: Tiles, right: Tiles, lower: bool) -> None:
    shape = len(left.left) * PANEL, len(right.right) * PANEL
    if total.shape != shape or total.dtype != torch.float32 or not total.is_contiguous():
        raise ValueError(f"need a contiguous float32 {list(shape)} to add to, not {total.dtype} {list(total.shape)}")
    if right.end - right.begin != left.end - left.begin:
        raise ValueError("both sides need as many tokens")
    workers = torch.get_num_threads()
    depths = left.begin, left.end, right.begin - left.begin
    spread(amx.add, workers, workers, amx.shapes(), left.left, right.right, *depths, total.numpy(), lower)


@cache
def works() -> bool:
    """Whether this CPU has the unit, may use it, and adds up as exactly as float32 products do. Tried out once."""
    if not (binding.get_host_cpu_features().get("amx-bf16") and torch.cpu._init_amx()):
        return False
    x = torch.randn(512, 2 * PANEL, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = torch.zeros(2 * PANEL, 2 * PANEL)
    add_lower(found, Tiles().fill(x))
    return lossless(found, x)


def lossless(found: Tensor, x: Tensor) -> bool:
    """Whether x^T x as found, read on and below the diagonal, is as exact as float32's own; x bfloat16."""
    exact = x.double().T @ x.double()
    plain = float((x.float().T @ x.float() - exact).abs().max())
    return float((found - exact).tril().abs().max()) <= max(2 * plain, 1e-6 * float(exact.diagonal().max()))
