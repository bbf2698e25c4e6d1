"""Whether two models differ on the same questions: mean difference, its standard error, and a p-value.

Questions answered by both are pairs, so what makes a question hard for both cancels (Miller, arXiv 2411.00640, section
4; McNemar 1947 for right and wrong). Knows lists of numbers.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Of the second model's values minus the first's."""

    mean: float
    stderr: float
    p_value: float  # two-sided, of no difference


def difference(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Compare two models' values [questions]; None of fewer than two questions.

    Where all values are 0 or 1, the p-value is that of McNemar's exact test: of the questions that exactly one model
    has right, as many would fall to either side by the flip of a coin. Else that of a normal test of the mean.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} values are no pairs")
    if len(first) < 2:
        return None
    apart = [after - before for before, after in zip(first, second, strict=True)]
    mean, stderr = statistics.fmean(apart), statistics.stdev(apart) / math.sqrt(len(apart))
    if set(first) | set(second) <= {0, 1}:
        return Difference(mean, stderr, _mcnemar(apart.count(1), apart.count(-1)))
    if stderr == 0:
        return Difference(mean, stderr, 1.0 if mean == 0 else 0.0)
    return Difference(mean, stderr, math.erfc(abs(mean) / stderr / math.sqrt(2)))


def _mcnemar(gained: int, lost: int) -> float:
    """P(a split at least as uneven as this) of gained + lost fair flips."""
    flips, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(flips, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / 2**flips)
