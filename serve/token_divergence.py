"""KL between two next-token distributions, of which only the likeliest tokens are known. Knows numbers alone."""

import math
from collections.abc import Mapping
from typing import TypeVar

Key = TypeVar("Key", str, int)  # a token, or its id

# The rest of the other model: what is left of 1 is a difference of rounded numbers. More of it never raises the KL.
LEAST_REST = 1e-6


def at_least(own: Mapping[Key, float], other: Mapping[Key, float]) -> float | None:
    """A lower bound of KL(own ‖ other), in nats; None where no token is known of both.

    own, other  natural log-probabilities at the same place of the same text, by token

    Tokens that both list are taken one by one, all others together as one: merging outcomes never raises a KL (the log
    sum inequality; Cover and Thomas, Elements of Information Theory, 2.7).
    """
    both = own.keys() & other.keys()
    if not both:
        return None
    known = math.fsum(math.exp(own[token]) * (own[token] - other[token]) for token in both)
    rest = max(0.0, 1 - math.fsum(math.exp(own[token]) for token in both))
    other_rest = max(LEAST_REST, 1 - math.fsum(math.exp(other[token]) for token in both))
    return max(0.0, known + (rest * math.log(rest / other_rest) if rest else 0.0))
