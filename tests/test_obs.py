import itertools

import pytest
import torch

from hubplugin.checkpoint.encodings import Columns
from hubplugin.errors import CompressError
from hubplugin.manifest.steps.prune import Prune
from hubplugin.methods import linear_algebra, obs

STEP = Prune(method="prune", ffn=0.25, damp=1e-6)


def problem(outputs: int = 20, inputs: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(400, inputs, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), x.T @ x


def kept(made: object) -> list[int]:
    assert isinstance(made.encoding, Columns)
    return made.encoding.keep.tolist()


def test_keeping_all_is_the_identity() -> None:
    weight, h = problem()
    made = obs.compress(weight, h, STEP, [obs.Cut(1, 60)])
    assert kept(made) == list(range(60))
    assert torch.allclose(made.weight, weight) and made.loss < 1e-12


def test_the_kept_weights_are_the_least_squares_solution() -> None:
    weight, h = problem()
    made = obs.compress(weight, h, STEP, [obs.Cut(1, 45)])
    keep = kept(made)
    factor = torch.linalg.cholesky(linear_algebra.damped(h, STEP.damp))  # X^T X = L L^T, so L^T stands for X
    target, available = factor.T @ weight.T, factor.T[:, keep]
    assert torch.allclose(made.weight.T, torch.linalg.lstsq(available, target).solution, atol=1e-6)


def test_one_column_at_a_time_finds_the_cheapest_column() -> None:
    weight, h = problem(outputs=6, inputs=12)
    losses = {}
    for gone in range(12):
        keep = [column for column in range(12) if column != gone]
        damped = linear_algebra.damped(h, STEP.damp)
        refit = torch.zeros_like(weight)
        refit[:, keep] = linear_algebra.solve(damped[keep][:, keep], weight @ damped[:, keep], "x")
        losses[gone] = linear_algebra.relative_loss(weight, refit, damped)
    made = obs.compress(weight, h, STEP, [obs.Cut(1, 11)])
    assert set(range(12)) - set(kept(made)) == {min(losses, key=losses.get)}


def test_a_copied_input_costs_nothing_to_drop() -> None:
    weight, _ = problem(inputs=10)
    x = torch.randn(200, 10, dtype=torch.float64)
    x[:, 4] = x[:, 9]
    made = obs.compress(weight, x.T @ x, STEP, [obs.Cut(1, 9)])
    assert made.loss < 1e-6
    assert len({4, 9} & set(kept(made))) == 1


def test_inputs_that_never_fire_go_first() -> None:
    weight, h = problem()
    h[:, 10:20] = 0
    h[10:20, :] = 0
    made = obs.compress(weight, h, STEP, [obs.Cut(1, 50)])
    assert kept(made) == [*range(10), *range(20, 60)] and made.dead_inputs == 10


def test_refitted_pruning_beats_cutting_the_smallest_columns() -> None:
    weight, h = problem()
    made = obs.compress(weight, h, STEP, [obs.Cut(1, 45)])
    smallest = (weight.square().sum(dim=0) * h.diagonal()).argsort()[:15]
    cut = weight.clone()
    cut[:, smallest] = 0
    assert made.loss < 0.5 * linear_algebra.relative_loss(weight, cut, h)


def test_shuffled_inputs_give_the_same_choice_shuffled() -> None:
    weight, h = problem()
    order = torch.randperm(60)
    plain = obs.compress(weight, h, STEP, [obs.Cut(1, 40)])
    shuffled = obs.compress(weight[:, order], h[order][:, order], STEP, [obs.Cut(1, 40)])
    assert sorted(order[kept(shuffled)].tolist()) == kept(plain)
    assert shuffled.loss == pytest.approx(plain.loss)


def test_the_greedy_choice_is_close_to_the_best_of_all_choices() -> None:
    weight, h = problem(outputs=5, inputs=9)
    damped = linear_algebra.damped(h, STEP.damp)

    def loss(keep: tuple[int, ...]) -> float:
        columns = list(keep)
        refit = torch.zeros_like(weight)
        refit[:, columns] = linear_algebra.solve(damped[columns][:, columns], weight @ damped[:, columns], "x")
        return linear_algebra.relative_loss(weight, refit, h)

    best = min(loss(keep) for keep in itertools.combinations(range(9), 6))
    assert obs.compress(weight, h, STEP, [obs.Cut(1, 6)], batch=1).loss <= 1.3 * best


@pytest.mark.parametrize("keep", [0, 61])
def test_an_impossible_count_is_refused(keep: int) -> None:
    weight, h = problem()
    with pytest.raises(CompressError):
        obs.compress(weight, h, STEP, [obs.Cut(1, keep)])


# -- units of several columns, and whole curves


def repaired(weight: torch.Tensor, h: torch.Tensor, keep: list[int]) -> torch.Tensor:
    damped, made = linear_algebra.damped(h, STEP.damp), torch.zeros_like(weight)
    made[:, keep] = linear_algebra.solve(damped[keep][:, keep], weight @ damped[:, keep], "x")
    return made


def lost(weight: torch.Tensor, h: torch.Tensor, keep: list[int]) -> float:
    """The relative loss of the best repair, damping counted."""
    return linear_algebra.relative_loss(weight, repaired(weight, h, keep), linear_algebra.damped(h, STEP.damp))


def without(units: set[int], columns: int, inputs: int) -> list[int]:
    return [column for column in range(inputs) if column // columns not in units]


@pytest.mark.parametrize("seed", range(4))
def test_a_unit_of_columns_is_scored_as_one(seed: int) -> None:
    weight, h = problem(outputs=6, inputs=24, seed=seed)
    cheapest = min(range(6), key=lambda unit: lost(weight, h, without({unit}, 4, 24)))
    made = obs.compress(weight, h, STEP, [obs.Cut(4, 5)])
    assert kept(made) == without({cheapest}, 4, 24)
    assert torch.allclose(made.weight, repaired(weight, h, kept(made))[:, kept(made)])


@pytest.mark.parametrize("seed", range(4))
def test_units_go_one_by_one_each_the_cheapest_beside_those_gone(seed: int) -> None:
    weight, h = problem(outputs=6, inputs=24, seed=seed)
    gone: set[int] = set()
    for _ in range(3):
        left = [unit for unit in range(6) if unit not in gone]
        gone.add(min(left, key=lambda unit: lost(weight, h, without(gone | {unit}, 4, 24))))
    assert kept(obs.compress(weight, h, STEP, [obs.Cut(4, 3)], batch=4)) == without(gone, 4, 24)


@pytest.mark.parametrize("batch", [1, 32])
def test_every_segment_loses_as_many_units(batch: int) -> None:
    weight, h = problem(outputs=6, inputs=24)
    weight[:, :12] *= 0.01  # all that is cheap lies in the first segment
    made = obs.compress(weight, h, STEP, [obs.Cut(2, 6, segments=2)], batch=batch)
    units = sorted({column // 2 for column in kept(made)})
    assert len(kept(made)) == 12 and len([unit for unit in units if unit < 6]) == 3
    free = obs.compress(weight, h, STEP, [obs.Cut(2, 6)], batch=batch)
    assert min(kept(free)) >= 12, "without segments the cheap half goes"


@pytest.mark.parametrize("seed", range(4))
def test_the_cheapest_unit_of_each_segment_goes(seed: int) -> None:
    weight, h = problem(outputs=6, inputs=24, seed=seed)
    cheapest = {
        min(range(first, first + 3), key=lambda unit: lost(weight, h, without({unit}, 4, 24))) for first in (0, 3)
    }
    assert kept(obs.compress(weight, h, STEP, [obs.Cut(4, 4, segments=2)])) == without(cheapest, 4, 24)


@pytest.mark.parametrize("seed", range(6))
def test_a_second_cut_is_scored_beside_what_the_first_one_took(seed: int) -> None:
    weight, h = problem(outputs=6, inputs=24, seed=seed)
    first = kept(obs.compress(weight, h, STEP, [obs.Cut(8, 2)]))
    options = [[column for column in first if column not in first[at : at + 4]] for at in range(0, 16, 4)]
    cheapest = min(options, key=lambda keep: lost(weight, h, keep))
    assert kept(obs.compress(weight, h, STEP, [obs.Cut(8, 2), obs.Cut(4, 3)])) == cheapest


def test_columns_with_most_energy_stay_where_columns_go_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1000, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 1000, generator=generator, dtype=torch.float64)
    x[:, 123] *= 50
    weight[:, 123] = 0  # the outlier costs nothing to drop
    step = STEP.model_copy(update={"damp": 0.01})
    assert 123 in kept(obs.compress(weight, x.T @ x, step, [obs.Cut(1, 500)]))
    assert not {122, 123} & set(kept(obs.compress(weight, x.T @ x, step, [obs.Cut(2, 250)])))


@pytest.mark.parametrize("cut", [obs.Cut(1, 0), obs.Cut(4, 0), obs.Cut(4, 0, segments=2)])
def test_a_curve_knows_what_compressing_would_lose(cut: obs.Cut) -> None:
    weight, h = problem(outputs=6, inputs=24)
    units = 24 // cut.columns
    stops = list(range(units - cut.segments, 0, -cut.segments))
    found = obs.curve(weight, h, STEP, cut, stops, batch=1)
    assert len(found) == len(stops)
    for stop, (stays, loss) in zip(stops, found, strict=True):
        made = obs.compress(weight, h, STEP, [obs.Cut(cut.columns, stop, cut.segments)], batch=1)
        assert stays.tolist() == kept(made)
        assert loss == pytest.approx(lost(weight, h, kept(made)), rel=1e-6)
        assert loss == pytest.approx(made.loss, rel=1e-2), "but for the damping"
        assert torch.allclose(obs.repaired(weight, h, STEP, stays)[:, stays], made.weight)
    losses = [loss for _, loss in found]
    assert losses == sorted(losses) and losses[0] > 0
    for (before, _), (after, _) in itertools.pairwise(found):
        assert set(after.tolist()) < set(before.tolist())


@pytest.mark.parametrize("cut", [obs.Cut(7, 2), obs.Cut(4, 5, segments=2), obs.Cut(4, 7), obs.Cut(20, 2, segments=2)])
def test_units_that_do_not_fit_are_refused(cut: obs.Cut) -> None:
    weight, h = problem(inputs=24)
    with pytest.raises(CompressError):
        obs.compress(weight, h, STEP, [cut])
