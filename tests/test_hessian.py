import pytest
import torch

from hubplugin.errors import CompressError
from hubplugin.kernels import products, second_moments
from hubplugin.kernels.instructions import token_sums
from hubplugin.methods import linear_algebra, qep


def inputs(tokens: int = 300, size: int = 48, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(tokens, size, generator=generator, dtype=torch.float64) @ mix


def test_second_moments_do_not_depend_on_how_tokens_are_batched() -> None:
    x = inputs()
    whole, pieces = second_moments.SecondMoments(), second_moments.SecondMoments()
    whole.add(x)
    for piece in x.reshape(3, 100, 48).split(1):
        pieces.add(piece)
    assert torch.allclose(whole.matrix("w"), pieces.matrix("w"), rtol=1e-12)
    assert whole.tokens == pieces.tokens == 300
    assert torch.allclose(whole.matrix("w"), x.T @ x)


def test_the_factor_multiplies_back_to_the_damped_second_moments() -> None:
    x = inputs()
    h = x.T @ x
    made = linear_algebra.factor(h, 0.02)
    upper = made.unit_upper * made.diagonal.sqrt()
    assert torch.allclose(upper @ upper.T, linear_algebra.damped(h, 0.02))
    assert torch.allclose(made.unit_upper.diagonal(), torch.ones(48, dtype=torch.float64))
    assert torch.equal(made.unit_upper, made.unit_upper.triu())
    assert made.damp == 0.02 and made.fallback is None


def test_a_hand_computed_factor() -> None:
    # [[5, 2], [2, 4]] = [[2, 1], [0, 2]] [[2, 0], [1, 2]]
    made = linear_algebra.factor(torch.tensor([[5.0, 2.0], [2.0, 4.0]], dtype=torch.float64), 1e-12)
    assert torch.allclose(made.unit_upper, torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64))
    assert torch.allclose(made.diagonal, torch.tensor([4.0, 4.0], dtype=torch.float64))


def test_a_factor_in_an_order_is_that_of_the_reordered_matrix() -> None:
    x, order = inputs(), torch.randperm(48)
    h = x.T @ x
    made, expected = linear_algebra.factor(h, 0.02, order), linear_algebra.factor(h[order][:, order], 0.02)
    assert torch.allclose(made.unit_upper, expected.unit_upper) and torch.allclose(made.diagonal, expected.diagonal)


def test_dividing_by_a_factor_is_solving_with_the_damped_matrix() -> None:
    x = inputs()
    h, right = x.T @ x, torch.randn(5, 48, dtype=torch.float64)
    assert torch.allclose(
        linear_algebra.divided(right, linear_algebra.factor(h, 0.02)) @ linear_algebra.damped(h, 0.02), right
    )


def test_what_a_linear_owes_is_the_same_summed_over_inputs_or_over_outputs() -> None:
    x, base, weight = inputs(), inputs(seed=1), torch.randn(5, 48, dtype=torch.float64)
    owed = []
    for ends in (True, False):
        correction = qep.TargetCorrection(weight, ends)
        for part, other in zip(x.split(100), base.split(100), strict=True):
            correction.add(part, other)
        owed.append(correction.cross_term(correction.sum(0.5)))
    assert torch.allclose(owed[0], weight @ (base - x).T @ x / 2) and torch.allclose(*owed)


@pytest.fixture(params=[True, False])
def unit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a CPU's instructions for bfloat16, where there are some, and without."""
    if not request.param:
        monkeypatch.setattr(token_sums, "kinds", lambda: ())


@pytest.mark.parametrize("size", [64, 48])
def test_second_moments_of_bfloat16_are_those_of_float64(unit: None, size: int) -> None:
    x = inputs(size=size).bfloat16()
    moment = second_moments.SecondMoments()
    moment.add(x[:100])
    moment.add(x[100:])
    expected = x.double().T @ x.double()
    assert moment.tokens == 300
    assert float((moment.matrix("w") - expected).abs().max()) <= 1e-6 * float(expected.max())


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("size", [64, 48])
@pytest.mark.parametrize("cut", [64, 50])
def test_what_is_owed_in_bfloat16_is_that_of_float64_but_for_the_rounding_of_differences(
    unit: None, ends: bool, size: int, cut: int
) -> None:
    x, lost = inputs(128, size).bfloat16(), inputs(128, 96, seed=3).bfloat16() / 8
    base = x + inputs(128, size, seed=1).bfloat16() / 16
    weight = torch.randn(96, size, generator=torch.Generator().manual_seed(2)).bfloat16().float()
    seen, correction = second_moments.PreparedInputs().take(x), qep.TargetCorrection(weight, ends)
    for first, last in ((0, cut), (cut, 128)):
        correction.add(seen.part(first, last), base[first:last], lost[first:last] if ends else None)
    missing = (base.double() - x.double()) @ weight.double().T + (lost.double() if ends else 0)
    owed, expected = correction.cross_term(correction.sum()), missing.T @ x.double()
    assert correction.tokens == 128
    assert float((owed - expected).norm() / expected.norm()) < 0.01


def test_inputs_that_were_never_excited_get_a_unit_diagonal() -> None:
    x = inputs()
    x[:, 7] = 0
    h = x.T @ x
    before = h.clone()
    alive, dead = linear_algebra.without_dead(h)
    assert dead.nonzero().flatten().tolist() == [7]
    assert alive[7, 7] == 1 and torch.equal(h, before), "the caller's matrix must stay as it is"


def test_damping_climbs_and_says_so() -> None:
    h = torch.tensor([[1.0, 1.05], [1.05, 1.0]], dtype=torch.float64)  # an eigenvalue of -0.05
    made = linear_algebra.factor(h, 0.01)
    assert made.damp == pytest.approx(0.1)
    assert made.fallback == "damping raised from 0.01 to 0.1"


def test_a_hopeless_matrix_ends_as_weighted_rounding_and_says_so() -> None:
    h = torch.tensor([[1.0, 50.0], [50.0, 1.0]], dtype=torch.float64)
    made = linear_algebra.factor(h, 0.01)
    assert torch.equal(made.unit_upper, torch.eye(2, dtype=torch.float64))
    assert made.fallback is not None and "without error feedback" in made.fallback


def test_activations_that_are_not_finite_are_an_error_with_a_place() -> None:
    moment = second_moments.SecondMoments()
    moment.add(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(CompressError, match="NaN or infinite") as caught:
        moment.matrix("model.layers.3.mlp.down_proj")
    assert caught.value.where == "model.layers.3.mlp.down_proj"


def test_no_token_seen_is_an_error() -> None:
    with pytest.raises(CompressError, match="no calibration token"):
        second_moments.SecondMoments().matrix("x")


def test_relative_loss_is_the_share_of_output_energy_that_became_error() -> None:
    x = inputs()
    before, after = torch.randn(2, 5, 48, dtype=torch.float64)
    by_outputs = ((x @ (before - after).T).square().sum() / (x @ before.T).square().sum()).item()
    assert linear_algebra.relative_loss(before, after, x.T @ x) == pytest.approx(by_outputs)
    assert linear_algebra.relative_loss(torch.zeros(2, 48, dtype=torch.float64), after[:2], x.T @ x) == 0.0


def test_solve_and_inverse_agree_with_the_plain_ones() -> None:
    x = inputs()
    h = linear_algebra.damped(x.T @ x, 0.01)
    right = torch.randn(5, 48, dtype=torch.float64)
    assert torch.allclose(linear_algebra.inverse(h, "x"), torch.linalg.inv(h))
    assert torch.allclose(linear_algebra.solve(h, right, "x") @ h, right)
    with pytest.raises(CompressError, match="not positive definite"):
        linear_algebra.inverse(-h, "x")


@pytest.mark.parametrize("shape", [(40, 576, 130), (8, 96, 64), (300, 1536, 192)])
def test_rough_products_are_good_to_three_digits(shape: tuple[int, int, int]) -> None:
    rows, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(count, inputs, generator=generator) for count in (rows, outputs))
    found, exact = products.rough(x, weight), x.double() @ weight.double().T
    assert found.dtype == torch.float32
    assert float(((found - exact).abs() / (x.double().abs() @ weight.double().abs().T)).max()) < 2**-8
    assert torch.equal(products.rough(x.double(), weight.double()), x.double() @ weight.double().T)
