import itertools

import pytest
import torch

from hubplugin import hessian
from hubplugin.errors import CompressError
from hubplugin.manifest import Prune
from hubplugin.methods import obs
from hubplugin.methods.base import Columns

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
    factor = torch.linalg.cholesky(hessian.damped(h, STEP.damp))  # X^T X = L L^T, so L^T stands for X
    target, available = factor.T @ weight.T, factor.T[:, keep]
    assert torch.allclose(made.weight.T, torch.linalg.lstsq(available, target).solution, atol=1e-6)


def test_one_column_at_a_time_finds_the_cheapest_column() -> None:
    weight, h = problem(outputs=6, inputs=12)
    losses = {}
    for gone in range(12):
        keep = [column for column in range(12) if column != gone]
        damped = hessian.damped(h, STEP.damp)
        refit = torch.zeros_like(weight)
        refit[:, keep] = hessian.solve(damped[keep][:, keep], weight @ damped[:, keep], "x")
        losses[gone] = hessian.relative_loss(weight, refit, damped)
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
    assert made.loss < 0.5 * hessian.relative_loss(weight, cut, h)


def test_shuffled_inputs_give_the_same_choice_shuffled() -> None:
    weight, h = problem()
    order = torch.randperm(60)
    plain = obs.compress(weight, h, STEP, [obs.Cut(1, 40)])
    shuffled = obs.compress(weight[:, order], h[order][:, order], STEP, [obs.Cut(1, 40)])
    assert sorted(order[kept(shuffled)].tolist()) == kept(plain)
    assert shuffled.loss == pytest.approx(plain.loss)


def test_the_greedy_choice_is_close_to_the_best_of_all_choices() -> None:
    weight, h = problem(outputs=5, inputs=9)
    damped = hessian.damped(h, STEP.damp)

    def loss(keep: tuple[int, ...]) -> float:
        columns = list(keep)
        refit = torch.zeros_like(weight)
        refit[:, columns] = hessian.solve(damped[columns][:, columns], weight @ damped[:, columns], "x")
        return hessian.relative_loss(weight, refit, h)

    best = min(loss(keep) for keep in itertools.combinations(range(9), 6))
    assert obs.compress(weight, h, STEP, [obs.Cut(1, 6)], batch=1).loss <= 1.3 * best


@pytest.mark.parametrize("keep", [0, 61])
def test_an_impossible_count_is_refused(keep: int) -> None:
    weight, h = problem()
    with pytest.raises(CompressError):
        obs.compress(weight, h, STEP, [obs.Cut(1, keep)])
