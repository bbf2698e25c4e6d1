"""GPTQ against the textbook, and the invariances that a quality threshold would not catch."""

import pytest
import torch

from hubplugin.checkpoint import encodings
from hubplugin.checkpoint.encodings import Grid
from hubplugin.manifest.steps.gptq import Gptq
from hubplugin.methods import linear_algebra, qep
from hubplugin.methods.base import Compressed
from hubplugin.methods.gptq import gptq, grid, loop

INPUTS = 192


def problem(outputs: int = 37, inputs: int = INPUTS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(600, inputs, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), x.T @ x


def settings(**changes: object) -> Gptq:
    return Gptq.model_validate({"method": "gptq", "group_size": 64, **changes})


def codes(made: Compressed) -> torch.Tensor:
    assert isinstance(made.encoding, Grid)
    return made.encoding.codes


def textbook(weight: torch.Tensor, h: torch.Tensor, step: Gptq) -> torch.Tensor:
    """The paper's loop: upper Cholesky factor of the inverse, every column updates all later ones at once."""
    spec = gptq.spec_of(step, weight.shape[1])
    group = spec.group_size
    order = gptq.visiting_order(h.diagonal(), group) if step.act_order else torch.arange(weight.shape[1])
    weight, h = weight[:, order].clone(), h[order][:, order]
    inverse = torch.linalg.inv(linear_algebra.damped(h, step.damp))
    upper = torch.linalg.cholesky(inverse, upper=True)
    found = torch.zeros_like(weight)
    for column in range(weight.shape[1]):
        if column % group == 0:
            inside = slice(column, column + group)
            scale, zero = grid.fit(weight[:, inside], h.diagonal()[inside], spec)
        found[:, column] = grid.codes(weight[:, column], scale, zero, spec.top)
        error = (weight[:, column] - encodings.values(found[:, column], scale, zero)) / upper[column, column]
        weight[:, column:] -= torch.outer(error, upper[column, column:])
    return found[:, order.argsort()].to(torch.uint8)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("group_size", [-1, 32, 64])
def test_codes_equal_the_textbook_in_float64(group_size: int, act_order: bool, bits: int) -> None:
    weight, h = problem()
    step = settings(group_size=group_size, act_order=act_order, bits=bits)
    assert torch.equal(codes(gptq.compress(weight, h, step)), textbook(weight, h, step))


@pytest.mark.parametrize("chunk", [1, 7, 33, 1000])
def test_the_chunk_size_does_not_change_the_codes(chunk: int) -> None:
    weight, h = problem()
    spec = gptq.spec_of(settings(), INPUTS)
    columns, factor, importance = weight.T.contiguous(), linear_algebra.factor(h, 0.01), h.diagonal()
    one, other = (loop.sweep(columns, factor, importance, spec, size) for size in (chunk, loop.CHUNK))
    assert torch.equal(one.codes, other.codes)


def test_rows_do_not_influence_each_other() -> None:
    weight, h = problem()
    together = codes(gptq.compress(weight, h, settings()))
    apart = torch.cat([codes(gptq.compress(part, h, settings())) for part in weight.split(10)])
    assert torch.equal(together, apart)


def test_the_scale_of_the_second_moments_does_not_matter() -> None:
    weight, h = problem()
    assert torch.equal(codes(gptq.compress(weight, h, settings())), codes(gptq.compress(weight, h * 4096, settings())))


def test_inputs_shuffled_inside_a_group_give_the_same_weights_shuffled() -> None:
    weight, h = problem()
    shuffle = torch.cat([torch.randperm(64) + start for start in range(0, INPUTS, 64)])
    plain = gptq.compress(weight, h, settings()).weight
    shuffled = gptq.compress(weight[:, shuffle], h[shuffle][:, shuffle], settings()).weight
    assert torch.equal(plain[:, shuffle], shuffled)


def test_uncorrelated_inputs_give_plain_rounding() -> None:
    weight, _ = problem()
    made = gptq.compress(weight, torch.eye(INPUTS, dtype=torch.float64), settings())
    assert isinstance(made.encoding, Grid)
    scales = made.encoding.scales.double().repeat_interleave(64, dim=1)
    assert torch.equal(made.encoding.codes, grid.codes(weight, scales, 8, 15).to(torch.uint8))


def test_error_feedback_loses_less_than_rounding() -> None:
    weight, h = problem()
    rounded = gptq.compress(weight, torch.eye(INPUTS, dtype=torch.float64), settings()).weight
    assert gptq.compress(weight, h, settings()).loss < 0.7 * linear_algebra.relative_loss(weight, rounded, h)


def test_weight_is_what_codes_and_scales_say_and_the_caller_keeps_its_tensors() -> None:
    weight, h = problem()
    kept = weight.clone(), h.clone()
    made = gptq.compress(weight, h, settings(bits=8))
    assert isinstance(made.encoding, Grid)
    scales = made.encoding.scales.double().repeat_interleave(64, dim=1)
    assert torch.equal(made.weight, scales * (made.encoding.codes.double() - 128))
    assert torch.equal(weight, kept[0]) and torch.equal(h, kept[1])


def test_weights_already_on_the_grid_come_back_exactly() -> None:
    _, h = problem()
    scale = torch.full((5, 1), 2.0**-6, dtype=torch.float64)
    exact = scale * torch.randint(-8, 8, (5, INPUTS)).double()
    exact[:, ::64] = -8 * scale  # the end of the grid is reached in every group
    made = gptq.compress(exact, h, settings())
    assert made.loss < 1e-3
    plain = gptq.compress(exact, torch.eye(INPUTS, dtype=torch.float64), settings())
    assert float((plain.weight - exact).abs().max()) <= float(scale[0])


def test_dead_inputs_become_zero_and_are_counted() -> None:
    weight, h = problem()
    h[3, :] = 0
    h[:, 3] = 0
    made = gptq.compress(weight, h, settings())
    assert made.dead_inputs == 1
    assert torch.equal(made.weight[:, 3], torch.zeros(37, dtype=torch.float64))


def test_a_singular_matrix_is_damped_and_reported_not_hidden() -> None:
    weight, _ = problem()
    x = torch.ones(10, INPUTS, dtype=torch.float64)
    h = x.T @ x
    h[0, 1] = h[1, 0] = 10.5  # one eigenvalue of -0.5: a tenth of the mean diagonal mends it
    made = gptq.compress(weight, h, settings())
    assert made.fallback is not None and "damping raised" in made.fallback
    assert bool(torch.isfinite(made.weight).all())


def test_an_all_zero_row_stays_zero() -> None:
    weight, h = problem()
    weight[2] = 0
    made = gptq.compress(weight, h, settings())
    assert float(made.weight[2].abs().max()) == 0.0


def test_scales_mean_the_same_in_float16_and_bfloat16() -> None:
    scale = grid.storable(torch.logspace(-7, 4, 500, dtype=torch.float64))
    assert torch.equal(scale.to(torch.float16).double(), scale)
    assert torch.equal(scale.to(torch.float16).to(torch.bfloat16).double(), scale)
    assert float(scale.min()) > 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_clip_search_never_fits_worse_than_the_full_range(symmetric: bool) -> None:
    weight = torch.randn(50, 64, dtype=torch.float64)
    weight[:, 0] *= 6
    importance = torch.rand(64, dtype=torch.float64)

    def error(shares: tuple[float, ...]) -> torch.Tensor:
        spec = grid.Spec(4, 64, symmetric, shares)
        scale, zero = (found[:, None] for found in grid.fit(weight, importance, spec))
        back = encodings.values(grid.codes(weight, scale, zero, spec.top), scale, zero)
        return (back - weight).square() @ importance

    full, searched = error(()), error(grid.shrinking(4, 64))
    assert bool((searched <= full).all()) and float(searched.sum()) < 0.9 * float(full.sum())


Pair = tuple[torch.Tensor, torch.Tensor]  # our inputs and the base's


def turned(seed: int, turn: torch.Tensor) -> Pair:
    """Inputs x, and those of a base that saw x turned."""
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, x @ turn.T


def corrected(
    weight: torch.Tensor,
    fit: Pair,
    check: Pair | None,
    ends: bool,
    lost: torch.Tensor | None = None,
) -> tuple[torch.Tensor, float]:
    """The target and the share of it, with hardly any damping."""
    corrections = [qep.TargetCorrection(weight, ends) for _ in range(2)]
    for correction, pair in zip(corrections, (fit, check), strict=True):
        if pair is not None:
            correction.add(*pair, lost)
    x = torch.cat([pair[0] for pair in (fit, check) if pair is not None])
    ready = gptq.prepare(x.T @ x, settings(damp=1e-9, group_size=-1))
    return qep.corrected(weight, ready, *corrections)


@pytest.mark.parametrize("ends", [True, False])
def test_the_corrected_target_undoes_what_happened_upstream(ends: bool) -> None:
    turn = torch.eye(16, dtype=torch.float64) + 0.1 * torch.randn(16, 16, dtype=torch.float64)
    weight = torch.randn(5, 16, dtype=torch.float64)
    target, share = corrected(weight, turned(1, turn), turned(2, turn), ends)
    assert share == pytest.approx(1, abs=0.05)
    assert torch.allclose(target, weight @ turn, atol=0.05), "W x~ = (W turn) x for every x"
    half, fixed = corrected(weight, turned(1, turn), None, ends)
    assert fixed == 0.5 and torch.allclose(half, (weight + weight @ turn) / 2, atol=1e-6)


@pytest.mark.parametrize("ends", [True, False])
def test_a_correction_that_held_out_tokens_contradict_is_not_taken(ends: bool) -> None:
    turn = torch.randn(16, 16, dtype=torch.float64) * 0.1
    eye, weight = torch.eye(16, dtype=torch.float64), torch.randn(5, 16, dtype=torch.float64)
    target, share = corrected(weight, turned(1, eye + turn), turned(2, eye - turn), ends)
    assert share == 0 and torch.equal(target, weight)


def test_of_several_dampings_that_is_taken_which_gains_most_on_held_out_tokens() -> None:
    """Forty tokens, one strong direction in which the stream lost something, and chance in all others."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(48, 16, generator=generator, dtype=torch.float64) * torch.tensor([10.0] + [0.3] * 15).double()
    weight = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    missing = torch.zeros(5, 16, dtype=torch.float64)
    missing[:, 0] = 1
    lost = x @ missing.T + torch.randn(48, 5, generator=generator, dtype=torch.float64)
    corrections = [qep.TargetCorrection(weight, True) for _ in range(2)]
    for correction, part in zip(corrections, (slice(0, 40), slice(40, 48)), strict=True):
        correction.add(x[part], x[part], lost[part])
    h = x.T @ x
    target, share = qep.corrected(weight, gptq.prepare(h, settings(damp=1e-6, group_size=-1)), *corrections)
    found = {}
    for damp in (1e-6, *qep.DAMPINGS):
        change = lost[:40].T @ x[:40] * 48 / 40 @ torch.linalg.inv(linear_algebra.damped(h, damp))
        gain, size = (float(one.sum()) for one in ((lost[40:].T @ x[40:] * 48 / 8) * change, (change @ h) * change))
        ratio = min(gain / size, 1.0)
        found[damp] = (2 * ratio * gain - ratio**2 * size, ratio, change)
    gained, ratio, change = max(found.values(), key=lambda one: one[0])
    assert gained > 2 * found[1e-6][0]
    assert share == pytest.approx(ratio) and torch.allclose(target, weight + ratio * change)


def test_no_damping_is_tried_beyond_the_first_that_gains_less(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []
    factor = linear_algebra.factor

    def noted(hessian: torch.Tensor, damp: float, order: torch.Tensor) -> linear_algebra.Factor:
        tried.append(damp)
        return factor(hessian, damp, order)

    turn = torch.eye(16, dtype=torch.float64) + 0.1 * torch.randn(16, 16, dtype=torch.float64)
    pairs, weight = [turned(seed, turn) for seed in (1, 2)], torch.randn(5, 16, dtype=torch.float64)
    corrections = [qep.TargetCorrection(weight, True) for _ in pairs]
    for correction, pair in zip(corrections, pairs, strict=True):
        correction.add(*pair)
    x = torch.cat([pair[0] for pair in pairs])
    ready = gptq.prepare(x.T @ x, settings(damp=1e-9, group_size=-1))
    monkeypatch.setattr(linear_algebra, "factor", noted)
    qep.corrected(weight, ready, *corrections)
    assert tried == [qep.DAMPINGS[0]], "thousands of tokens: the weakest damping is best"


def test_without_drift_nothing_is_corrected() -> None:
    eye, weight = torch.eye(16, dtype=torch.float64), torch.randn(5, 16, dtype=torch.float64)
    target, _ = corrected(weight, turned(1, eye), turned(2, eye), False)
    assert torch.allclose(target, weight, atol=1e-12)


def test_what_the_stream_lost_is_made_up_for() -> None:
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weight, missing = (torch.randn(5, 16, dtype=torch.float64) for _ in range(2))
    target, _ = corrected(weight, (x, x), (x, x), True, x @ missing.T)
    assert torch.allclose(target, weight + missing, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_negative_scales_are_used_and_lose_less(bits: int) -> None:
    weight, h = problem()
    signed, plain = (gptq.compress(weight, h, settings(bits=bits, signed_scales=on)) for on in (True, False))
    assert isinstance(signed.encoding, Grid) and isinstance(plain.encoding, Grid)
    assert float((signed.encoding.scales < 0).float().mean()) > 0.2
    assert float(plain.encoding.scales.min()) > 0
    assert signed.loss < plain.loss
