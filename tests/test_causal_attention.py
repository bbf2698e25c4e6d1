"""Attention by 512-bit instructions, against float64. Skipped where the CPU is not faster that way."""

from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.kernels.instructions import causal_attention, panel_products
from hubplugin.model.architectures import families
from hubplugin.model.construction import attention

pytestmark = pytest.mark.skipif(not panel_products.works(), reason="MKL and torch use all of this CPU")
NEAR = {torch.bfloat16: 2**-7, torch.float32: 2**-20}


@pytest.fixture(autouse=True)
def nothing_learns() -> Any:
    with torch.inference_mode():
        yield


def heads(batch: int, count: int, tokens: int, width: int, dtype: torch.dtype, seed: int) -> Tensor:
    """[batch, heads, tokens, width], as transformers gives it: tokens before heads in memory."""
    made = torch.randn(batch, tokens, count, width, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).transpose(1, 2)


def given(batch: int, count: int, shared: int, tokens: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    counts = (count, shared, shared)
    return tuple(heads(batch, each, tokens, width, dtype, seed) for seed, each in enumerate(counts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("batch", "count", "shared", "tokens", "width"),
    [(1, 1, 1, 32, 64), (2, 9, 3, 77, 64), (3, 4, 4, 128, 128), (1, 6, 2, 515, 64)],
)
def test_it_is_causal_attention(
    batch: int, count: int, shared: int, tokens: int, width: int, dtype: torch.dtype
) -> None:
    query, key, value = given(batch, count, shared, tokens, width, dtype)
    assert causal_attention.fits(query, key, value)
    found = causal_attention.attend(query, key, value, width**-0.5)
    exact = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    assert found.dtype == dtype and found.shape == (batch, tokens, count, width) and found.is_contiguous()
    assert float((found - exact).abs().max()) <= NEAR[dtype] * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_token_sees_nothing_of_those_after_it(dtype: torch.dtype) -> None:
    before = given(1, 2, 1, 200, 64, dtype)
    after = [torch.cat([each[:, :, :130], torch.full_like(each[:, :, 130:], 9.0)], dim=2) for each in before]
    found = [causal_attention.attend(*three, 0.125)[:, :130] for three in (before, after)]
    assert torch.equal(*found)


def test_the_first_token_takes_its_own_value_and_equal_scores_the_mean() -> None:
    query, key, value = given(1, 1, 1, 64, 64, torch.float32)
    found = causal_attention.attend(query * 0, key, value, 1.0)[0, :, 0]
    means = value[0, 0].cumsum(0) / torch.arange(1, 65)[:, None]
    torch.testing.assert_close(found, means, rtol=0, atol=2**-20)


def test_scores_of_any_size_give_shares_of_one() -> None:
    query, key, value = given(1, 1, 1, 64, 64, torch.float32)
    ones = torch.ones_like(value)
    for size in (1e-4, 1.0, 1e4):
        found = causal_attention.attend(query * size, key, ones, 1.0)
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=2**-20)


def test_what_does_not_fit_is_left_to_torch() -> None:
    query, key, value = given(1, 2, 1, 64, 64, torch.float32)
    assert causal_attention.fits(query, key, value)
    assert not causal_attention.fits(query[:, :, :1], key, value), "one token is decoded"
    assert not causal_attention.fits(query[:, :, :20], key[:, :, :20], value[:, :, :20])
    assert not causal_attention.fits(query[..., :32], key[..., :32], value[..., :32])
    assert not causal_attention.fits(query, key.bfloat16(), value)


class _Module:
    is_causal, num_key_value_groups = True, 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.0, "scaling": 0.2, "position_ids": torch.arange(64), "use_cache": False},
        {"is_causal": False},
        {"attention_mask": torch.ones(64, 64, dtype=torch.bool).tril(5)},
        {"position_bias": torch.zeros(1, 2, 64, 64)},
    ],
)
def test_transformers_gets_what_its_own_function_gives(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    three = given(1, 2, 1, 64, 64, torch.float32)
    ours: list[bool] = []
    attend = causal_attention.attend
    monkeypatch.setattr(causal_attention, "attend", lambda *a: (ours.append(True), attend(*a))[1])
    options = {"attention_mask": None, **options}
    found, _ = attention.attention(_Module(), *three, **options)
    expected, _ = attention.sdpa_attention_forward(_Module(), *three, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert bool(ours) == (
        options.keys() <= {"attention_mask", "dropout", "scaling", "position_ids", "use_cache"}
        and options["attention_mask"] is None
    )


def test_a_model_gives_the_same_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pico.write(
        tmp_path / "m", "llama", hidden_size=128, num_attention_heads=2, num_key_value_heads=1, head_dim=64
    )
    tokens, found = pico.tokens(2, 48), []
    for works in (True, False):
        monkeypatch.setattr(panel_products, "works", lambda works=works: works)
        found.append(open_model(base, families.FAMILIES["llama"]).hidden_states(tokens))
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)
    assert not torch.equal(*found), "the kernel was used"
