"""KL divergence of predictions, the one place it is computed. Knows logits and hidden states; no folder."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from hubplugin.kernels import logit_rows
from hubplugin.model.block_runner import Model

LOGITS = 2**24  # of one model held at once: positions times vocabulary


def divergence(base_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(base || other) in nats per position, float64 [...]; logits are [..., vocabulary]."""
    rows = (each.flatten(0, -2) for each in (base_logits, logits))
    return logit_rows.compared(*rows).divergence.reshape(logits.shape[:-1])


def divergences(model: Model, base_hidden: Tensor, others: Sequence[Tensor]) -> list[float]:
    """Mean KL in nats per token between last hidden states [sequences, tokens, hidden] and each of others of them."""
    sums = [0.0] * len(others)
    pieces = [hidden_pieces(model, hidden.flatten(0, 1)) for hidden in others]
    for place, base_piece in enumerate(hidden_pieces(model, base_hidden.flatten(0, 1))):
        base_logits = model.logits(base_piece)
        for index, other in enumerate(pieces):
            sums[index] += float(divergence(base_logits, model.logits(other[place])).sum())
    return [total / base_hidden.flatten(0, 1).shape[0] for total in sums]


def logits_pairs(
    base: Model, base_hidden: Tensor, other: Model, other_hidden: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Float32 logits [n, vocabulary] of two models, LOGITS at most at once, from hidden states [positions, hidden]."""
    pieces = zip(hidden_pieces(other, base_hidden), hidden_pieces(other, other_hidden), strict=True)
    for base_piece, other_piece in pieces:
        yield base.logits(base_piece), other.logits(other_piece)


def hidden_pieces(model: Model, hidden: Tensor) -> tuple[Tensor, ...]:
    """Hidden states [positions, hidden] in pieces whose logits are LOGITS at most."""
    return hidden.split(max(1, LOGITS // model.vocabulary))
