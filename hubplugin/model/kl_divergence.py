"""KL divergence of predictions, the one place it is computed. Knows logits and hidden states; no folder."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from hubplugin.model.block_runner import Model

LOGITS = 2**23  # held at once: positions times vocabulary; KL works on a few copies of them in float64


def divergence(base_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(base || other) in nats per position, float64 [positions]; logits are [positions, vocabulary]."""
    base_logs = base_logits.double().log_softmax(-1)
    return _divergence(base_logs.exp(), base_logs, logits.double().log_softmax(-1))


def divergences(model: Model, base_hidden: Tensor, others: Sequence[Tensor]) -> list[float]:
    """Mean KL in nats per token between last hidden states [sequences, tokens, hidden] and each of others of them.

    In float32: what is compared here is the size of changes, and evaluation repeats none of it.
    """
    sums = [0.0] * len(others)
    pieces = [hidden_pieces(model, hidden.flatten(0, 1)) for hidden in others]
    for place, base_piece in enumerate(hidden_pieces(model, base_hidden.flatten(0, 1))):
        base_logs = model.logits(base_piece).log_softmax(-1)
        probabilities = base_logs.exp()
        for index, other in enumerate(pieces):
            logs = model.logits(other[place]).log_softmax(-1)
            sums[index] += float(_divergence(probabilities, base_logs, logs).sum())
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


def _divergence(probabilities: Tensor, base_logs: Tensor, logs: Tensor) -> Tensor:
    """sum p (log p - log q) per position, never below 0."""
    return probabilities.mul(base_logs - logs).sum(-1).clamp(min=0)
