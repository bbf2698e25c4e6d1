"""Weights are stored up or down by chance, as often as they are nearer: nothing learnt is lost, what fits stays."""

import pytest
import torch

from hubplugin.kernels import stochastic_rounding
from hubplugin.kernels.stochastic_rounding import rounded, stored

MANY = 40_000
DTYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_dtype_has_is_kept(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.0, -1.0, 2.0**-10, -3.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny])
    kept = torch.cat([values, torch.randn(1000).to(dtype).float()])
    assert torch.equal(rounded(kept, dtype, 0).float(), kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at", [1.0, -1.0, 0.037, 2.0**-20])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_update_below_half_a_step_stays_in_the_mean(dtype: torch.dtype, at: float, share: float) -> None:
    low = torch.tensor(at).to(dtype)
    high = torch.nextafter(low, torch.tensor(torch.inf, dtype=dtype))
    step = float(high) - float(low)
    made = rounded(torch.full((MANY,), float(low) + share * step, dtype=torch.float32), dtype, 1)
    assert set(made.tolist()) == {float(low), float(high)}
    mean = float(((made.double() - float(low)) / step).mean())
    assert abs(mean - share) < 5 * (share * (1 - share) / MANY) ** 0.5


def test_around_zero_and_at_the_ends() -> None:
    tiny = torch.tensor([1e-42, -1e-42, 0.0])
    made = rounded(tiny.repeat(1000, 1), torch.bfloat16, 0).float()
    assert (made[:, 0] >= 0).all() and (made[:, 1] <= 0).all() and (made[:, 2] == 0).all()
    most = torch.finfo(torch.bfloat16).max
    assert rounded(torch.full((1000,), most), torch.bfloat16, 0).isfinite().all()


def test_float32_and_integers_are_copied() -> None:
    for tensor in (torch.randn(5), torch.arange(5, dtype=torch.int32), torch.randn(5).half()):
        same = rounded(tensor, tensor.dtype, 0)
        assert torch.equal(same, tensor) and same.data_ptr() != tensor.data_ptr()


def test_large_tensors_are_rounded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(30, 40)
    for given in (weight, weight.T, weight[:, ::2]):
        whole = rounded(given, torch.bfloat16, 3)
        monkeypatch.setattr(stochastic_rounding, "PIECE", 7)
        assert torch.equal(rounded(given, torch.bfloat16, 3), whole) and whole.shape == given.shape
        assert (whole.float() - given).abs().max() < 2.0**-7 * given.abs().max()
        monkeypatch.undo()


def test_chance_depends_on_the_name_alone() -> None:
    weights = {"a": torch.randn(50, 50), "b": torch.randn(50, 50)}
    dtypes = dict.fromkeys(weights, torch.bfloat16)
    once, again = stored(weights, dtypes), stored({"b": weights["b"]}, dtypes)
    assert torch.equal(once["b"], again["b"])
    assert not torch.equal(once["a"], stored({"b": weights["a"]}, dtypes)["b"])
    noise = (once["a"].float() - weights["a"]) / weights["a"].abs()
    assert noise.abs().max() <= 2.0**-7 and abs(float(noise.mean())) < 1e-3
