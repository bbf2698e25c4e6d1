"""Weight sharing by codebooks: k-means, the sweep, the refit and FP4's scales, against brute force and against GPTQ."""

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import Codebook, Fp4
from hubplugin.manifest.steps.codebook import Codebook as Settings
from hubplugin.methods import linear_algebra
from hubplugin.methods.codebook import codebook, fp4, kmeans, loop, loop_cpu, refit
from hubplugin.methods.codebook.loop import Swept
from hubplugin.methods.gptq import gptq, grid
from hubplugin.methods.gptq import loop as gptq_loop

DOUBLE = torch.float64


def settings(**changes: Any) -> Settings:
    return Settings(method="codebook", **changes)


def problem(outputs: int = 24, inputs: int = 64, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A weight and the second moments of inputs that depend on each other and differ in size."""
    make = torch.Generator().manual_seed(outputs + inputs)
    mixed = torch.randn(inputs, inputs, generator=make, dtype=dtype) * torch.rand(inputs, generator=make, dtype=dtype)
    x = torch.randn(4 * inputs, inputs, generator=make, dtype=dtype) @ mixed
    return torch.randn(outputs, inputs, generator=make, dtype=dtype), x.T @ x


def weighted(weight: Tensor, importance: Tensor, centroids: Tensor) -> float:
    """sum_j h_j min_c (w_j - c)^2 of one row."""
    nearest = (weight[:, None] - centroids).abs().amin(dim=1)
    return float((importance * nearest**2).sum())


def best_by_force(weight: Tensor, importance: Tensor, count: int) -> float:
    """The least error of any division of one row into `count` runs, each with its mean: k-means' optimum."""
    ordered, order = weight.sort()
    mass, least = importance[order], float("inf")
    for cuts in itertools.combinations(range(1, len(weight)), count - 1):
        total = 0.0
        for first, last in itertools.pairwise((0, *cuts, len(weight))):
            part, h = ordered[first:last], mass[first:last]
            total += float((h * (part - (h * part).sum() / h.sum()) ** 2).sum())
        least = min(least, total)
    return least


def test_k_means_of_a_row_by_hand() -> None:
    """0, 1 and 10, 12 in two clusters; with three times the weight on 12, its centroid moves to 11.5."""
    row = torch.tensor([[10.0, 0.0, 1.0, 12.0]])
    assert kmeans.fit(row, torch.ones(4), 2).tolist() == [[0.5, 11.0]]
    assert kmeans.fit(row, torch.tensor([1.0, 1.0, 1.0, 3.0]), 2).tolist() == [[0.5, 11.5]]


@pytest.mark.parametrize("count", [2, 4])
def test_k_means_is_as_good_as_brute_force(count: int) -> None:
    make = torch.Generator().manual_seed(count)
    rows, importance = torch.randn(40, 10, generator=make), torch.rand(10, generator=make) + 0.1
    optimal = torch.tensor([best_by_force(row, importance, count) for row in rows])

    def errors(centroids: Tensor) -> Tensor:
        return torch.tensor([weighted(row, importance, own) for row, own in zip(rows, centroids, strict=True)])

    found = errors(kmeans.optimum(rows, importance, count).float())
    torch.testing.assert_close(found, optimal, rtol=1e-4, atol=1e-6)
    assert float(errors(kmeans.fit(rows, importance, count)).sum()) < 1.005 * float(optimal.sum())  # as it is stored
    lloyd = errors(kmeans.local_optimum(rows, importance, count).float())  # may stop at a local optimum of a row
    assert bool((lloyd >= 0.999 * optimal).all()) and float(lloyd.sum()) < 1.25 * float(optimal.sum())
    assert int((lloyd < 1.001 * optimal).sum()) > len(rows) / 2


def test_k_means_of_long_rows_is_no_worse_than_any_start_leads_to() -> None:
    make = torch.Generator().manual_seed(7)
    rows, importance = torch.randn(6, 700, generator=make) ** 3, torch.rand(700, generator=make)
    best, local = (one(rows, importance, 16).float() for one in (kmeans.optimum, kmeans.local_optimum))
    for row, own, other in zip(rows, best, local, strict=True):
        assert weighted(row, importance, own) <= weighted(row, importance, other) * (1 + 1e-5)


def test_more_centroids_than_weights_hold_each_weight() -> None:
    row = torch.tensor([[0.5, -2.0, 8.0]])
    for cluster in (kmeans.optimum, kmeans.local_optimum):
        found = cluster(row, torch.ones(3), 16)
        assert weighted(row[0], torch.ones(3), found[0]) == 0 and bool((found.diff() >= 0).all())


def test_centroids_are_numbers_of_float16_and_of_bfloat16() -> None:
    found = kmeans.storable(torch.tensor([0.0, 1 / 3, -1e-6, 3e38, -70000.0]))
    assert torch.equal(found, found.half().float()) and torch.equal(found, found.bfloat16().float())
    assert found[0] == 0 and bool(found.isfinite().all())


def test_without_correlations_every_weight_goes_to_its_nearest_centroid() -> None:
    weight, _ = problem(8, 64)
    made = codebook.compress(weight, torch.eye(64), settings(bits=3, refits=0))
    assert isinstance(made.encoding, Codebook)
    centroids = made.encoding.centroids.float()[:, 0]
    nearest = (weight[:, :, None] - centroids[:, None]).abs().amin(dim=2)
    torch.testing.assert_close((weight - made.weight).abs(), nearest)


@pytest.mark.parametrize("group", [16, 64])
def test_a_uniform_codebook_gives_gptqs_codes(group: int) -> None:
    weight, hessian = problem(dtype=DOUBLE)
    spec = grid.Spec(3, group)
    columns, factor, weigh = weight.T.contiguous(), linear_algebra.factor(hessian, 0.01), hessian.diagonal()
    ours = gptq_loop.sweep(columns, factor, weigh, spec)

    def uniform(_: int, some: Tensor, importance: Tensor) -> Tensor:
        scale, zero = grid.fit(some, importance, spec)
        return scale[:, None] * (torch.arange(spec.top + 1) - zero[:, None])

    found = loop.sweep(columns, factor, weigh, group, uniform)
    assert torch.equal(found.codes, ours.codes)


@pytest.mark.parametrize(("outputs", "inputs", "group"), [(70, 300, 300), (5, 96, 16), (130, 64, 32)])
def test_the_compiled_inner_loop_gives_the_same_codes(outputs: int, inputs: int, group: int) -> None:
    weight, hessian = problem(outputs, inputs)
    columns, factor, weigh = weight.T.contiguous(), linear_algebra.factor(hessian, 0.01), hessian.diagonal()

    def clustered(_: int, some: Tensor, importance: Tensor) -> Tensor:
        return kmeans.fit(some, importance, 8)

    plain = loop.sweep(columns, factor, weigh, group, clustered)
    fast = loop.sweep(columns, factor, weigh, group, clustered, loop_cpu.snap)
    assert (plain.codes != fast.codes).float().mean() < 0.002  # sums in another order, near the middle of two levels
    first = plain.levels[0], fast.levels[0]
    assert torch.equal(*first)


def test_a_refit_by_hand() -> None:
    """One output, codes 0 0 1, and inputs 1 and 2 that always come together: least squares is not the mean."""
    columns = torch.tensor([[1.0], [3.0], [5.0]], dtype=DOUBLE)
    hessian = torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=DOUBLE)
    swept = Swept(torch.tensor([[0], [0], [1]], dtype=torch.uint8), torch.zeros(1, 1, 2, dtype=DOUBLE))
    # p^T H p = 6 for both inputs of code 0, p^T H w = (3 + 1) * 1 + (1 + 1) * 3 = 10
    found, loss = refit.refit(columns, hessian, swept)
    assert found.levels[0, 0].tolist() == [float(torch.tensor(10 / 6).bfloat16()), 5.0]
    error = columns[:, 0] - torch.tensor([found.levels[0, 0, 0]] * 2 + [5.0], dtype=DOUBLE)
    assert float(loss) == pytest.approx(float(error @ hessian @ error))


@pytest.mark.parametrize("group", [32, 96])
def test_a_refit_is_the_least_squares_and_never_raises_the_loss_of_a_row(group: int) -> None:
    weight, hessian = problem(12, 96, DOUBLE)
    columns = weight.T.contiguous()
    factor = linear_algebra.factor(hessian, 0.01)
    fit = lambda _, some, importance: kmeans.fit(some, importance, 4)  # noqa: E731
    swept = loop.sweep(columns, factor, hessian.diagonal(), group, fit)
    before = refit.loss_of(columns, hessian, swept.codes, swept.levels)
    found, loss = refit.refit(columns, hessian, swept)
    assert bool((loss <= before).all()) and float(loss.sum()) < 0.999 * float(before.sum())
    torch.testing.assert_close(loss, refit.loss_of(columns, hessian, found.codes, found.levels))
    _, same = refit.refit(columns, hessian, found)
    assert bool((same <= loss).all())
    for row in range(12):  # beside the answer of dense linear algebra
        chosen = torch.nn.functional.one_hot(swept.codes[:, row].long(), 4).double()
        own = torch.block_diag(*chosen.split(group))
        solved = torch.linalg.lstsq(own.T @ hessian @ own, own.T @ hessian @ columns[:, row], driver="gelsd").solution
        error = columns[:, row] - own @ solved
        assert float(loss[row]) < 1.02 * float(error @ hessian @ error)


def test_refits_lower_the_loss_and_codebooks_err_less_than_a_grid_of_their_bits() -> None:
    weight, hessian = problem(48, 128)
    losses = [codebook.compress(weight, hessian, settings(bits=3, refits=count)).loss for count in range(4)]
    assert losses[1] < losses[0] and losses[2] < losses[1] and losses[3] <= losses[2] * (1 + 1e-6)
    assert losses[0] < gptq.compress(weight, hessian, gptq_settings(bits=3)).loss


def gptq_settings(**changes: Any) -> Any:
    from hubplugin.manifest.steps.gptq import Gptq

    return Gptq(method="gptq", group_size=-1, **changes)


@pytest.mark.parametrize("values", ["free", "e2m1"])
def test_the_order_of_inputs_and_of_outputs_changes_nothing(values: str) -> None:
    """A whole row is one group: any order of its inputs, visited by second moment, gives the same weights."""
    weight, hessian = problem(16, 64, DOUBLE)
    step = settings(values=values)
    made = codebook.compress(weight, hessian, step)
    rows = torch.tensor(random.Random(0).sample(range(16), 16))
    assert torch.equal(codebook.compress(weight[rows], hessian, step).weight, made.weight[rows])
    if values == "free":
        columns = torch.tensor(random.Random(1).sample(range(64), 64))
        moved = codebook.compress(weight[:, columns], hessian[columns][:, columns], step)
        torch.testing.assert_close(moved.weight, made.weight[:, columns], rtol=2**-7, atol=0)


def test_inputs_that_never_fire_are_counted_and_cost_nothing() -> None:
    weight, hessian = problem(8, 64)
    hessian[3], hessian[:, 3] = 0, 0
    made = codebook.compress(weight, hessian, settings(bits=2))
    assert made.dead_inputs == 1 and made.fallback is None and bool(made.weight.isfinite().all())


def test_what_is_returned_is_what_the_codes_stand_for() -> None:
    weight, hessian = problem(8, 128)
    for step, kind in ((settings(bits=3, group_size=64), Codebook), (settings(values="e2m1"), Fp4)):
        made = codebook.compress(weight, hessian, step)
        assert isinstance(made.encoding, kind) and torch.equal(made.encoding.dense(), made.weight)
        assert torch.equal(made.encoding.rows(slice(2, 5)).dense(), made.weight[2:5])


def test_fp4_levels_are_its_fifteen_numbers_times_a_float8() -> None:
    """Weights that are such numbers come out as they are: 6 and 1.5 times a scale of 0.25."""
    weight = torch.tensor([[1.5, 0.375, -0.125, 0.0, -0.75, 1.0, -1.5, 0.25] * 2])
    divisor = fp4.divisor_of(weight)
    assert divisor == 2.0**9  # 448 / (2 * 1.5 / 6) = 896
    levels = fp4.fit(weight, torch.ones(16), divisor)
    assert levels[0].tolist() == [0.25 * level for level in fp4.LEVELS]
    made = codebook.compress(weight, torch.eye(16), settings(values="e2m1"))
    assert torch.equal(made.weight, weight) and made.loss == 0
    assert isinstance(made.encoding, Fp4) and made.encoding.scales.float().tolist() == [[128.0]]
    assert made.encoding.codes[0, :5].tolist() == [7, 3, 9, 0, 13]


def test_fp4s_scale_is_searched() -> None:
    """One outlier of little importance does not stretch the scale of the others."""
    weight = torch.tensor([[0.5, -0.25, 0.75, 1.0] * 3 + [1.5, -1.5, 0.25, 9.0]])
    importance = torch.tensor([1.0] * 15 + [1e-6])
    divisor = fp4.divisor_of(weight)
    searched = fp4.fit(weight, importance, divisor)[0, -1]
    assert float(searched) < 9.0 and float(fp4.fit(weight, torch.ones(16), divisor)[0, -1]) > float(searched)


def test_nothing_but_zeros() -> None:
    for step in (settings(bits=2, group_size=64), settings(values="e2m1")):
        made = codebook.compress(torch.zeros(4, 64), torch.eye(64), step)
        assert not made.weight.any() and made.loss == 0
