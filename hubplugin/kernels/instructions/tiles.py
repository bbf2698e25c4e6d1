"""Activations as tiles of a CPU's matrix unit (AMX), and sums over tokens of their products.

Packed once, they serve all sums they go into. Knows no method and no model.
"""

import copy
import math
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from llvmlite import binding
from torch import Tensor

from hubplugin.kernels.instructions import amx
from hubplugin.kernels.instructions.amx import DEEP, PANEL, SIXTEEN
from hubplugin.kernels.instructions.bits import bits
from hubplugin.kernels.threads import spread


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

    @property
    def features(self) -> tuple[int, int]:
        """Of the left side and of the right."""
        return len(self.left) * PANEL, len(self.right) * PANEL

    @property
    def tokens(self) -> int:
        """As many as the tiles have room for."""
        return (self.end - self.begin) * DEEP

    def add(self, left: Any, total: np.ndarray, lower: bool) -> None:
        """total += left^T times this, `left` being of this kind; of `lower` what lies on and below the diagonal."""
        workers = torch.get_num_threads()
        depths = left.begin, left.end, self.begin - left.begin
        spread(amx.add, workers, workers, amx.shapes(), left.left, self.right, *depths, total, lower)


@cache
def there() -> bool:
    """Whether this CPU has the unit and may use it."""
    return bool(binding.get_host_cpu_features().get("amx-bf16") and torch.cpu._init_amx())
