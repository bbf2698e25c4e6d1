"""Activations as panels for a CPU's bfloat16 dot products (AVX-512), and sums over tokens of their products.

A panel holds PANEL features of all pairs of tokens. The same panel is read in rows of PANEL as the right side of a
product and number by number as the left one, so that activations are packed once. Knows no method and no model.
"""

import copy
import math
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from hubplugin.kernels.instructions.avx512 import PANEL, dots
from hubplugin.kernels.instructions.bits import bits
from hubplugin.kernels.threads import compiled, spread

RUN = 64  # pairs of tokens between adding sums to the total: a panel's of them are 16 KB
UNIT = 16  # rows of sums that a thread does at a time; PANEL is a multiple


class Panels:
    """Activations for either side of a product; `fill` replaces them and keeps the memory."""

    def __init__(self) -> None:
        self.begin = self.end = 0  # the pairs that count
        self.pairs = np.empty((0, 0, PANEL), dtype=np.uint32)  # [panels, pairs of tokens, PANEL]
        self._memory = self.pairs

    def fill(self, rows: Tensor, both: bool = True) -> Self:
        """Take rows bfloat16 [tokens, features]. They serve for both sides always."""
        tokens, features = rows.shape
        self.begin, self.end = 0, -(-tokens // 2)
        shape = features // PANEL, self.end, PANEL
        if self._memory.size < math.prod(shape):  # torch aligns to lines of the cache, numpy does not
            self._memory = torch.empty(math.prod(shape), dtype=torch.int32).numpy().view(np.uint32)
        self.pairs = self._memory.reshape(-1)[: math.prod(shape)].reshape(shape)
        spread(_pack, self.end, bits(rows), self.pairs)
        return self

    def part(self, first: int, last: int) -> "Panels | None":
        """These tokens of all, in the same memory; None where a pair has others too."""
        if first % 2 or last % 2:
            return None
        found = copy.copy(self)
        found.begin, found.end = first // 2, last // 2
        return found

    @property
    def features(self) -> tuple[int, int]:
        """Of the left side and of the right."""
        return len(self.pairs) * PANEL, len(self.pairs) * PANEL

    @property
    def tokens(self) -> int:
        """As many as the pairs have room for."""
        return (self.end - self.begin) * 2

    def add(self, left: Any, total: np.ndarray, lower: bool) -> None:
        """total += left^T times this, `left` being of this kind; of `lower` what lies on and below the diagonal."""
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
