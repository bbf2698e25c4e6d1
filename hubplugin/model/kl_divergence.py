"""KL divergence of predictions, the one place it is computed. Knows logits and hidden states; no folder."""

from collections.abc import Sequence

from torch import Tensor

from hubplugin.model.block_runner import Model


def divergences(model: Model, expected: Tensor, others: Sequence[Tensor]) -> list[float]:
    """Mean KL in nats per token between last hidden states [sequences, tokens, hidden] and each of others of them.

    In float32: what is compared here is the size of changes, and evaluation repeats none of it.
    """
    count = max(1, LOGITS // model.vocabulary)
    sums = [0.0] * len(others)
    parts = [hidden.flatten(0, 1).split(count) for hidden in others]
    for place, piece in enumerate(expected.flatten(0, 1).split(count)):
        wanted = model.logits(piece).log_softmax(-1)
        share = wanted.exp()
        for index, own in enumerate(parts):
            found = model.logits(own[place]).log_softmax(-1)
            sums[index] += float(share.mul(wanted - found).sum(-1).clamp(min=0).sum())
    return [total / expected.flatten(0, 1).shape[0] for total in sums]


LOGITS = 2**23  # held at once: positions times vocabulary; KL works on a few copies of them in float64


def divergence(base_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(base || other) in nats per position, float64 [positions]; logits are [positions, vocabulary]."""
    expected = base_logits.double().log_softmax(-1)
    return (expected.exp() * (expected - logits.double().log_softmax(-1))).sum(-1).clamp(min=0)
