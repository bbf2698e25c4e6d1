"""Sensitivity: what one change of one block does to the model's predictions, with everything else as in the base.

Knows blocks, linears and sublayers. Knows no method, no option and no budget.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from hubplugin.model import heterogeneous
from hubplugin.model.activations import Batch
from hubplugin.model.architectures.families import Sublayer
from hubplugin.model.block_runner import Model

MOMENT_TOKENS = 131072  # at most, that second moments are summed over before anything is chosen


def first_sequences(tokens: Tensor, most: int) -> Tensor:
    """The first sequences of ids [sequences, tokens]: `most` tokens in all at most, but one sequence at least."""
    return tokens[: max(1, most // tokens.shape[1])]


def forward_reweighted(
    model: Model, index: int, batches: list[Batch], linears: Sequence[nn.Linear], weight: Tensor
) -> list[Batch]:
    """`batches` behind block `index`, with other weights in these linears, stacked as [outputs, inputs].

    The linears have their own weights again afterwards.
    """
    originals = [linear.weight for linear in linears]
    for linear, rows in zip(linears, weight.split([len(original) for original in originals]), strict=True):
        linear.weight = nn.Parameter(rows.to(linear.weight.dtype), requires_grad=False)
    model.forward_block(index, batches)
    for linear, original in zip(linears, originals, strict=True):
        linear.weight = original
    return batches


def block_without(model: Model, index: int, sublayers: Sequence[Sublayer]) -> nn.Module:
    """A copy of the filled block `index` without these sublayers, for `Model.forward_block`."""
    block = model.copy_block(index)
    for sublayer in sublayers:
        heterogeneous.remove(block, sublayer)
    return block
