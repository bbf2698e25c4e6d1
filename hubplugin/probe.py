"""What one change of one block does to the model's predictions: a few sequences run through with that change alone.

Knows linears and parts of blocks; no method, no option and no budget.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from hubplugin import evaluate, uneven
from hubplugin.activations import Batch, copied
from hubplugin.family import Part
from hubplugin.stream import Model

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
    model.advance(index, lane)
    for linear, original in zip(linears, originals, strict=True):
        linear.weight = original
    return lane


def without(model: Model, index: int, parts: Sequence[Part]) -> nn.Module:
    """The filled block `index` without these parts, for `Model.advance`."""
    twin = model.twin(index)
    for part in parts:
        uneven.remove(twin, part)
    return twin


def divergences(model: Model, expected: Tensor, others: Sequence[Tensor]) -> list[float]:
    """Mean KL in nats per token between last hidden states [sequences, tokens, hidden] and each of others of them.

    In float32: what is compared here is the size of changes, and evaluation repeats none of it.
    """
    count = max(1, evaluate.LOGITS // model.vocabulary)
    sums = [0.0] * len(others)
    parts = [hidden.flatten(0, 1).split(count) for hidden in others]
    for place, piece in enumerate(expected.flatten(0, 1).split(count)):
        wanted = model.logits(piece).log_softmax(-1)
        share = wanted.exp()
        for index, own in enumerate(parts):
            found = model.logits(own[place]).log_softmax(-1)
            sums[index] += float(share.mul(wanted - found).sum(-1).clamp(min=0).sum())
    return [total / expected.flatten(0, 1).shape[0] for total in sums]
