"""Activations as panels for a CPU's bfloat16 dot products (AVX-512), and sums over tokens of their products.

A panel holds PANEL features of all pairs of tokens. The same panel is read in rows of PANEL as the right side of a
product and number by number as the left one, so that activations are packed once. Knows no method and no model.
"""

import math
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hubplugin.kernels.instructions.avx512 import PANEL, dots
from hubplugin.kernels.instructions.bits import bits
from hubplugin.kernels.instructions.packed_tokens import PackedTokens, aligned
from hubplugin.kernels.threads import compiled, spread

RUN = 64  # pairs of tokens between adding sums to the total: a panel's of them are 16 KB
UNIT = 16  # rows of sums that a thread does at a time; PANEL is a multiple


class Panels(PackedTokens):
    """Activations as panels of pairs of tokens, which serve for both sides always."""

    PANEL, DEEP = PANEL, 2

    def __init__(self) -> None:
        super().__init__()
        self.pairs = np.empty((0, 0, PANEL), dtype=np.uint32)  # [panels, pairs of tokens, PANEL]
        self._memory = self.pairs.reshape(-1)

    def fill(self, rows: Tensor, both: bool = True) -> Self:
        """Take rows bfloat16 [tokens, features]."""
        tokens, features = rows.shape
        self.begin, self.end = 0, -(-tokens // 2)
        shape = features // PANEL, self.end, PANEL
        self._memory = aligned(self._memory, math.prod(shape))
        self.pairs = self._memory[: math.prod(shape)].reshape(shape)
        spread(_pack, self.end, bits(rows), self.pairs)
        return self

    @property
    def features(self) -> tuple[int, int]:
        """As said of `PackedTokens`."""
        return len(self.pairs) * PANEL, len(self.pairs) * PANEL

    def add(self, left: Self, total: np.ndarray, lower: bool) -> None:
        """As said of `PackedTokens`."""
        workers = torch.get_num_threads()
        depths = left.begin, left.end, self.begin - left.begin
        spread(_add, workers, workers, left.pairs, self.pairs, *depths, total, lower)


@compiled
def _pack(first, last, rows, pairs):  # type: ignore[no-untyped-def]
    """Pairs first .. last of uint16 rows [tokens, features]; what is missing of the last is zero."""
    for pair in range(first, last):
        low = rows[2 * pair]
        high = rows[2 * pair + 1] if 2 * pair + 1 < len(rows) else np.zeros_like(low)
        for panel in range(len(pairs)):
            some = slice(panel * PANEL, (panel + 1) * PANEL)
            _interleave(low[some], high[some], pairs[panel, pair])


@compiled
def _interleave(low, high, out):  # type: ignore[no-untyped-def]
    for place in range(len(out)):
        out[place] = np.uint32(low[place]) | (np.uint32(high[place]) << np.uint32(16))


@compiled
def _add(first, last, workers, left, right, begin, end, shift, total, lower):  # type: ignore[no-untyped-def]
    """total += left^T right over pairs begin .. end of `left`, which are those `shift` further on of `right`.

    Does what workers first .. last of `workers` have to do. With `lower`, only panels on and below the diagonal.
    """
    for start in range(begin, end, RUN):
        count = min(RUN, end - start)
        for panel in range(len(right)):
            to = panel * right.strides[0] + (start + shift) * right.strides[1]
            for unit in range(panel * PANEL // UNIT if lower else 0, len(left) * PANEL // UNIT):
                if first <= unit % workers < last:
                    row = unit * UNIT
                    at = row // PANEL * left.strides[0] + start * left.strides[1] + row % PANEL * 4
                    column, step = panel * PANEL * 4, left.strides[1]
                    dots(row, row + UNIT, left, at, 4, step, right, to, count, total, column, False)
