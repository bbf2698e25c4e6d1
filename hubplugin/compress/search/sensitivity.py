"""What one change of one block does to the model's predictions: a few sequences run through with that change alone.

Knows linears and parts of blocks; no method, no option and no budget.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from hubplugin.model import heterogeneous
from hubplugin.model.activations import Batch, copied
from hubplugin.model.block_runner import Model
from hubplugin.model.families import Sublayer

MOMENT_TOKENS = 131072  # at most, that second moments are summed over before anything is decided


def first(tokens: Tensor, most: int) -> Tensor:
    """The first of sequences [sequences, tokens], so many tokens in all at most, but one sequence at least."""
    return tokens[: max(1, most // tokens.shape[1])]


def reweighted(
    model: Model, index: int, base: list[Batch], linears: Sequence[nn.Linear], weight: Tensor, folder: Path | None
) -> list[Batch]:
    """What comes out of block `index` where these linears alone have other weights, stacked as [outputs, inputs]."""
    lane = copied(base, folder)
    originals = [linear.weight for linear in linears]
    for linear, part in zip(linears, weight.split([len(one) for one in originals]), strict=True):
        linear.weight = nn.Parameter(part.to(linear.weight.dtype), requires_grad=False)
    model.forward_block(index, lane)
    for linear, original in zip(linears, originals, strict=True):
        linear.weight = original
    return lane


def without(model: Model, index: int, parts: Sequence[Sublayer]) -> nn.Module:
    """The filled block `index` without these parts, for `Model.advance`."""
    base_block = model.copy_block(index)
    for part in parts:
        heterogeneous.remove(base_block, part)
    return base_block
