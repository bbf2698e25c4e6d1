"""Activations packed for either side of a product that is summed over tokens: what the kinds of packing share.

Knows tokens; no instruction, no method and no model.
"""

import copy
from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor


class PackedTokens(ABC):
    """`fill` replaces the activations and keeps the memory."""

    PANEL: ClassVar[int]  # features come in multiples of it
    DEEP: ClassVar[int]  # tokens that are packed as one

    def __init__(self) -> None:
        self.begin = self.end = 0  # the packs of tokens that count

    @abstractmethod
    def fill(self, rows: Tensor, both: bool = True) -> Self:
        """Take rows bfloat16 [tokens, features]; for the left side only where not `both`."""

    @property
    @abstractmethod
    def features(self) -> tuple[int, int]:
        """Of the left side and of the right."""

    @abstractmethod
    def add(self, left: Self, total: np.ndarray, lower: bool) -> None:
        """total += left^T times this; of `lower` what lies on and below the diagonal."""

    @property
    def tokens(self) -> int:
        """As many as there is room for."""
        return (self.end - self.begin) * self.DEEP

    def part(self, first: int, last: int) -> Self | None:
        """These tokens of all, in the same memory; None where others are packed with them."""
        if first % self.DEEP or last % self.DEEP:
            return None
        found = copy.copy(self)
        found.begin, found.end = first // self.DEEP, last // self.DEEP
        return found


def aligned(memory: np.ndarray, size: int) -> np.ndarray:
    """The memory, or new for so many uint32: torch aligns to lines of the cache, numpy does not."""
    return memory if memory.size >= size else torch.empty(size, dtype=torch.int32).numpy().view(np.uint32)
