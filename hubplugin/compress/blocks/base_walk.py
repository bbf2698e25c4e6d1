"""The base's activations block after block, beside those of the variants that are fitted to what it makes of them.

Variants that are compressed side by side share one walk: what the base computes is the same for all of them. Knows
activations and modules; no statistics, no method and no file.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hubplugin.model.activations import Batch, copied
from hubplugin.model.block_runner import Model


@dataclass
class BaseWalk:
    """What the base makes of some or all calibration tokens in front of a block, and that block as the base has it."""

    batches: list[Batch]
    variants: int = 1  # that are fitted to it; each comes to a block and leaves it once
    _block: nn.Module | None = None
    _left: int = 0  # variants that have passed the block

    @property
    def shared(self) -> bool:
        """Whether what is computed for one variant is asked for again."""
        return self.variants > 1

    def block(self, model: Model, index: int) -> nn.Module:
        """The block as the base has it, which `model` has just loaded."""
        if self._block is None:
            self._block = model.copy_block(index)
        return self._block

    def leave(self, model: Model, index: int, after_pruned: list[Batch] | None = None) -> None:
        """Go on to the next block, where all variants have passed this one.

        `after_pruned` are activations behind blocks that the one variant does not have, and which are passed already.
        """
        self._left += 1
        if self._left < self.variants:
            return
        if after_pruned is None:
            model.forward_block(index, self.batches, self._block)
        else:
            for batch in self.batches:
                batch.clear()
            self.batches = after_pruned
        self._block, self._left = None, 0


def begin(compressed: list[Batch], corrected: int, folder: Path | None = None, variants: int = 1) -> BaseWalk | None:
    """A walk that sets out from the embeddings of all tokens, with `corrected` of them; None where it has none."""
    return BaseWalk(copied(spaced(compressed, corrected), folder), variants) if corrected else None


def spaced(batches: list[Batch], most: int) -> list[Batch]:
    """Every n-th batch, of `most` tokens in all, or of one batch where that has more."""
    return batches[every_nth(len(batches), math.prod(batches[0].shape("hidden")[:2]), most)]


def every_nth(count: int, tokens: int, most: int) -> slice:
    """Of `count` items of so many tokens, those that have `most` tokens in all; one item where that has more."""
    return slice(None, None, -(-count // max(1, most // tokens)))


def skip(model: Model, batches: list[Batch], pruned: Iterable[int]) -> None:
    """Take the base's activations through blocks that the variant does not have."""
    for index in pruned:
        model.block(index)
        model.forward_block(index, batches)
        model.free(index)
