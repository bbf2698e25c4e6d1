"""The knapsack against every combination there is, on toys."""

import itertools
import random

import pytest

from hubplugin.plan.choices import knapsack
from hubplugin.plan.choices.knapsack import Choice


def toy(seed: int, items: int = 5, options: int = 4) -> list[list[Choice]]:
    draw = random.Random(seed)
    return [
        [Choice(draw.randrange(1, 60), draw.random() * 10 ** draw.randrange(3)) for _ in range(options)]
        for _ in range(items)
    ]


def totals(items: list[list[Choice]], chosen: tuple[int, ...] | list[int]) -> tuple[int, float]:
    picked = [item[index] for item, index in zip(items, chosen, strict=True)]
    return sum(one.cost for one in picked), sum(one.loss for one in picked)


def best(items: list[list[Choice]], limit: int) -> float:
    combinations = itertools.product(*(range(len(item)) for item in items))
    return min(loss for cost, loss in (totals(items, each) for each in combinations) if cost <= limit)


@pytest.mark.parametrize("seed", range(20))
def test_it_fits_and_is_within_one_step_of_every_combination(seed: int) -> None:
    items = toy(seed)
    cheapest = sum(min(one.cost for one in item) for item in items)
    for limit in range(cheapest, cheapest + 160, 7):
        chosen = knapsack.solve(items, limit)
        assert chosen is not None
        cost, loss = totals(items, chosen)
        step = max(max(one.loss for one in item) - min(one.loss for one in item) for item in items)
        assert cost <= limit
        assert best(items, limit) <= loss + 1e-9 <= best(items, limit) + step + 2e-9


@pytest.mark.parametrize("seed", range(20))
def test_it_is_optimal_where_a_climb_ends_just_at_the_limit(seed: int) -> None:
    items = toy(seed)
    reached = sum(min(one.cost for one in item) for item in items)
    steps = sorted(
        (knapsack._slope(item[before], item[after]), item[after].cost - item[before].cost)
        for item in items
        for before, after in knapsack._hull_steps(item)
    )
    for _, more in steps:
        reached += more
        chosen = knapsack.solve(items, reached)
        assert chosen is not None
        assert totals(items, chosen) == (reached, pytest.approx(best(items, reached)))


def test_by_hand() -> None:
    items = [[Choice(1, 10.0), Choice(3, 4.0), Choice(9, 3.0)], [Choice(1, 5.0), Choice(2, 1.0), Choice(2, 2.0)]]
    assert knapsack.solve(items, 2) == [0, 0]
    assert knapsack.solve(items, 3) == [0, 1]  # 4 per unit of cost against 3
    assert knapsack.solve(items, 4) == [0, 1]  # the next step costs 2, 1 is left
    assert knapsack.solve(items, 5) == [1, 1]
    assert knapsack.solve(items, 100) == [2, 1]


def test_a_climb_passes_what_growing_limits_choose() -> None:
    items = [[Choice(1, 10.0), Choice(3, 4.0), Choice(9, 3.0)], [Choice(1, 5.0), Choice(2, 1.0), Choice(2, 2.0)]]
    assert list(knapsack.climb(items)) == [[0, 0], [0, 1], [1, 1], [2, 1]]
    assert list(knapsack.climb([[Choice(4, 0.0)]])) == [[0]]


def test_what_is_left_goes_to_a_smaller_step_that_still_fits() -> None:
    items = [[Choice(1, 100.0), Choice(50, 0.0)], [Choice(1, 2.0), Choice(4, 1.0)]]
    assert knapsack.solve(items, 10) == [0, 1]


def test_too_little_for_the_cheapest_is_none() -> None:
    assert knapsack.solve([[Choice(5, 1.0)], [Choice(5, 1.0)]], 9) is None


def test_ties_always_go_the_same_way() -> None:
    items = [[Choice(1, 2.0), Choice(2, 1.0)] for _ in range(6)]
    assert knapsack.solve(items, 9) == [1, 1, 1, 0, 0, 0]
