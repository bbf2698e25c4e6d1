"""Activations as tiles of a CPU's matrix unit (AMX), and sums over tokens of their products.

Packed once, they serve all sums they go into. Knows no method and no model.
"""

import math
from functools import cache
from typing import Self

import numpy as np
import torch
from llvmlite import binding
from torch import Tensor

from hubplugin.kernels.instructions import amx
from hubplugin.kernels.instructions.amx import DEEP, PANEL, SIXTEEN
from hubplugin.kernels.instructions.bits import bits
from hubplugin.kernels.instructions.packed_tokens import PackedTokens, aligned
from hubplugin.kernels.threads import spread


class Tiles(PackedTokens):
    """Activations as tiles of the unit."""

    PANEL, DEEP = PANEL, DEEP

    def __init__(self) -> None:
        super().__init__()
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
        self._memory[side] = aligned(self._memory[side], size)
        return self._memory[side][:size].reshape(shape)

    def _pack(self, rows: Tensor, before: int, both: bool) -> None:
        spread(amx.pack, len(self.left), bits(rows), before, both, self.left, self.right if both else self.left)

    @property
    def features(self) -> tuple[int, int]:
        """As said of `PackedTokens`."""
        return len(self.left) * PANEL, len(self.right) * PANEL

    def add(self, left: Self, total: np.ndarray, lower: bool) -> None:
        """As said of `PackedTokens`."""
        workers = torch.get_num_threads()
        depths = left.begin, left.end, self.begin - left.begin
        spread(amx.add, workers, workers, amx.shapes(), left.left, self.right, *depths, total, lower)


@cache
def there() -> bool:
    """Whether this CPU has the unit and may use it."""
    return bool(binding.get_host_cpu_features().get("amx-bf16") and torch.cpu._init_amx())
