"""Rows of logits, compiled: held against the formulas in float64."""

import math

import pytest
import torch

from hubplugin.kernels import logit_rows
from hubplugin.model import kl_divergence


def rows(vocabulary: int, noise: float, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits as models have them, far from zero for some rows, and the same with noise."""
    generator = torch.Generator().manual_seed(vocabulary)
    made = torch.randn(count, vocabulary, generator=generator) * 4 + torch.arange(count)[:, None] * 5 - 20
    return made, made + noise * torch.randn(count, vocabulary, generator=generator)


@pytest.mark.parametrize("vocabulary", [1, 7, 49_152, 151_936])
@pytest.mark.parametrize("noise", [0.001, 0.3, 4.0])
def test_rows_are_compared_as_float64_does(vocabulary: int, noise: float) -> None:
    p, q = rows(vocabulary, noise)
    found, exact = logit_rows.compared(p, q), logit_rows.compared(p.double(), q.double())
    assert float(found.divergence.mean()) == pytest.approx(float(exact.divergence.mean()), rel=1e-4, abs=1e-12)
    torch.testing.assert_close(found.divergence, exact.divergence, rtol=5e-3, atol=1e-12)
    torch.testing.assert_close(found.overlap, exact.overlap, rtol=0, atol=5e-6)
    for mine, theirs, logits in ((found.p, exact.p, p), (found.q, exact.q, q)):
        torch.testing.assert_close(mine.log_sum, theirs.log_sum, rtol=0, atol=1e-6)
        assert torch.equal(mine.first, logits.argmax(-1))
        lone = logit_rows.alone(logits)
        assert torch.equal(lone.log_sum, mine.log_sum) and torch.equal(lone.first, mine.first)


@pytest.mark.parametrize("vocabulary", [1, 7, 49_152])
@pytest.mark.parametrize("noise", [0.001, 0.3, 4.0])
def test_the_gradient_of_a_divergence_is_as_float64_has_it(vocabulary: int, noise: float) -> None:
    p, q = rows(vocabulary, noise)
    divergence, gradient = logit_rows.divergence_and_gradient(p, q)
    apart, exact = logit_rows.divergence_and_gradient(p.double(), q.double())
    torch.testing.assert_close(divergence, apart, rtol=5e-3, atol=1e-12)
    torch.testing.assert_close(gradient, exact.float(), rtol=1e-4, atol=5e-7)
    logits = q.double().requires_grad_()
    kl = torch.nn.functional.kl_div
    kl(logits.log_softmax(-1), p.double().log_softmax(-1), log_target=True, reduction="sum").backward()
    torch.testing.assert_close(exact, logits.grad)


def test_the_same_rows_are_not_apart_at_all() -> None:
    p, _ = rows(5_000, 1.0)
    found = logit_rows.compared(p, p.clone())
    assert found.divergence.tolist() == [0.0] * len(p)
    # a shift of all logits is no change; rounding the shifted logits alone is one, of the square of 4e-6
    assert float(logit_rows.compared(p, p + 32).divergence.max()) < 1e-10


def test_of_equal_logits_the_first_is_first() -> None:
    p = torch.zeros(3, 2_000)
    p[1, [700, 1500]] = 2.0
    p[2, 1999] = 1.0
    found = logit_rows.alone(p)
    assert found.first.tolist() == [0, 700, 1999]
    assert found.log_sum[0] == pytest.approx(math.log(2_000), abs=1e-9)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 200])
def test_the_largest_is_found_wherever_it_stands(count: int) -> None:
    numbers = torch.randn(count, generator=torch.Generator().manual_seed(count)).numpy()
    for place in range(count):
        moved = numbers.copy()
        moved[place] = 9
        assert logit_rows.largest(moved) == 9 and logit_rows.largest(-moved) == (-moved).max()


def test_extreme_logits_overflow_nothing() -> None:
    p = torch.tensor([[3e4, -3e4, 0.0], [-3e4, -3e4, -3e4], [0.0, -200.0, -300.0]])
    q = torch.tensor([[3e4, -3e4, 0.0], [-3e4, -3e4, -3e4], [-1.0, -1.0, -1.0]])
    found = logit_rows.compared(p, q)
    assert found.divergence.tolist() == pytest.approx([0, 0, math.log(3)], abs=1e-6)
    assert found.overlap.tolist() == pytest.approx([1, 1, 1 / 3], abs=1e-6)


def test_what_is_no_number_is_told() -> None:
    p, q = rows(3_000, 0.1, count=4)
    p[0, 2_999] = q[1, 17] = float("nan")
    p[2, 40] = float("inf")
    found = logit_rows.compared(p, q)
    assert found.divergence.isnan().tolist() == found.overlap.isnan().tolist()
    assert found.divergence.isnan().tolist() == [True, True, True, False]
    assert logit_rows.alone(p).log_sum.isfinite().tolist() == [False, True, False, True]


def test_gradients_are_left_to_torch() -> None:
    p, q = rows(50, 0.1)
    apart = logit_rows.compared(p, q.requires_grad_()).divergence.sum()
    apart.backward()
    assert q.grad is not None and bool(q.grad.any())


def test_positions_of_several_sequences_keep_their_shape() -> None:
    p, q = rows(300, 0.2)
    found = kl_divergence.divergence(p.reshape(3, 4, -1), q.reshape(3, 4, -1))
    assert torch.equal(found, kl_divergence.divergence(p, q).reshape(3, 4))


def test_rows_that_do_not_lie_side_by_side_are_read_as_they_are() -> None:
    p, q = rows(600, 0.2)
    found = logit_rows.compared(p.T.contiguous().T[::2], q[::2])
    torch.testing.assert_close(found.divergence, logit_rows.compared(p, q).divergence[::2])
