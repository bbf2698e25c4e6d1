"""The multiple-choice knapsack: one option for each item, the least total loss, a total cost within a limit.

Knows costs and losses; no bits, no models. Costs are whole numbers, so that a limit is held exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Choice:
    """One option of an item."""

    cost: int
    loss: float


def solve(items: Sequence[Sequence[Choice]], limit: int) -> list[int] | None:
    """The index of the chosen option of every item; None where even the cheapest options exceed the limit.

    Every item climbs the lower convex hull of its options, steepest steps of all items first (Everett 1963: that is
    optimal at every total it passes); when the next step is too dear, what is left of the limit goes to whichever
    change of a single item still fits and gains most. Ties go to the earlier item: the same input has the same answer.
    The loss is at most that of one hull step above the optimum.
    """
    chosen = [min(range(len(item)), key=lambda index: (item[index].cost, item[index].loss)) for item in items]
    left = limit - sum(item[index].cost for item, index in zip(items, chosen, strict=True))
    if left < 0:
        return None
    for number, after in _steepest_first(items):
        more = items[number][after].cost - items[number][chosen[number]].cost
        if more > left:
            break
        left -= more
        chosen[number] = after
    return _fill(items, chosen, left)


def climb(items: Sequence[Sequence[Choice]]) -> Iterator[list[int]]:
    """The choices that `solve` passes as its limit grows: from the cheapest of every item to the one of least loss."""
    chosen = [_hull(item)[0] for item in items]
    yield list(chosen)
    for number, after in _steepest_first(items):
        chosen[number] = after
        yield list(chosen)


def _steepest_first(items: Sequence[Sequence[Choice]]) -> list[tuple[int, int]]:
    """The steps of all items along their hulls, as item and option reached: first those that gain most for a cost."""
    steps = [
        (_slope(item[before], item[after]), number, after)
        for number, item in enumerate(items)
        for before, after in _hull_steps(item)
    ]
    return [(number, after) for _, number, after in sorted(steps, key=lambda step: step[0])]  # stable: in order


def _slope(before: Choice, after: Choice) -> float:
    """Change of the loss per unit of cost: the more negative, the better the step."""
    return (after.loss - before.loss) / (after.cost - before.cost)


def _hull_steps(item: Sequence[Choice]) -> list[tuple[int, int]]:
    """Steps along the lower convex hull."""
    return list(pairwise(_hull(item)))


def _hull(item: Sequence[Choice]) -> list[int]:
    """The lower convex hull, from the cheapest option to the one with the least loss."""
    cheapest_first = sorted(range(len(item)), key=lambda index: (item[index].cost, item[index].loss))
    hull = cheapest_first[:1]
    for index in cheapest_first[1:]:
        if item[index].loss >= item[hull[-1]].loss:
            continue  # it costs as much or more, and gains nothing
        while len(hull) > 1 and _slope(item[hull[-2]], item[hull[-1]]) >= _slope(item[hull[-1]], item[index]):
            hull.pop()
        hull.append(index)
    return hull


def _fill(items: Sequence[Sequence[Choice]], chosen: list[int], left: int) -> list[int]:
    """Spend what is left: again and again the affordable change of one item that lowers the loss most."""
    while True:
        best: tuple[float, int, int] | None = None
        for number, (item, now) in enumerate(zip(items, chosen, strict=True)):
            for index, choice in enumerate(item):
                gain = item[now].loss - choice.loss
                if gain > 0 and choice.cost - item[now].cost <= left and (best is None or gain > best[0]):
                    best = (gain, number, index)
        if best is None:
            return chosen
        _, number, index = best
        left -= items[number][index].cost - items[number][chosen[number]].cost
        chosen[number] = index
