"""Float32 results of float32 and bfloat16 products, against float64. Skipped where the CPU is not faster that way."""

import gc
from pathlib import Path

import pico
import pytest
import torch
from torch import Tensor, nn

from hubplugin.evaluation import quality_metrics
from hubplugin.kernels import products
from hubplugin.kernels.instructions import panel_products
from hubplugin.kernels.instructions.panel_products import PanelLinear
from hubplugin.model.architectures import families

pytestmark = pytest.mark.skipif(not panel_products.works(), reason="this CPU has no fast dot products of bfloat16")


@pytest.fixture(autouse=True)
def nothing_learns() -> "torch.inference_mode":
    with torch.inference_mode():
        yield


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, rows: Tensor, weight: Tensor) -> float:
    """The largest, relative to the sizes of what is summed."""
    rows, weight = rows.double(), weight.double()
    return float(((found - rows @ weight.T).abs() / (rows.abs() @ weight.abs().T)).max())


@pytest.mark.parametrize("rows", [32, 37, 300])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 2), (200, 576), (128, 1536)])
def test_a_product_is_as_exact_as_float32s_own(rows: int, outputs: int, inputs: int) -> None:
    weight, x, out = numbers(outputs, inputs, seed=1), numbers(rows, inputs), torch.full((rows + 1, outputs), 7.0)
    assert panel_products.fits(x, weight)
    assert error(panel_products.product(x, weight, out[:rows]), x, weight) < 2**-20
    assert bool((out[rows] == 7).all()), "nothing is written past the rows"


def test_small_whole_numbers_come_out_exactly() -> None:
    x, weight = numbers(40, 64).mul(50).round(), numbers(70, 64, seed=1).mul(50).round()
    assert torch.equal(panel_products.product(x, weight, torch.empty(40, 70)), x @ weight.T)


def test_of_bfloat16_the_float32_product_is_given() -> None:
    x, weight = numbers(40, 576).bfloat16(), numbers(130, 576, seed=1).bfloat16()
    found = panel_products.product(x, weight, torch.empty(40, 130))
    assert error(found[:, :128], x, weight[:128]) < 2**-21
    assert error(found[:, 128:], x, weight[128:]) < 2**-8, "what fills no panel is torch's own product"


@pytest.mark.parametrize("rows", [33, 300])
def test_a_bfloat16_result_is_the_float32_one_rounded(rows: int) -> None:
    x, weight = numbers(rows, 576).bfloat16(), numbers(192, 576, seed=1).bfloat16()
    exact = panel_products.product(x, weight, torch.empty(rows, 192))
    out = torch.full((rows + 1, 192), 7.0, dtype=torch.bfloat16)
    assert torch.equal(panel_products.product(x, weight, out[:rows]), exact.bfloat16())
    assert bool((out[rows] == 7).all()), "nothing is written past the rows"


def test_what_does_not_fit_is_left_to_torch() -> None:
    x, weight = numbers(40, 64), numbers(64, 64)
    assert panel_products.fits(x, weight)
    assert not panel_products.fits(x[:20], weight) and not panel_products.fits(x, weight[:60])
    assert not panel_products.fits(x[:, :63], weight[:, :63]) and not panel_products.fits(x, weight.bfloat16())
    with torch.inference_mode(False), torch.enable_grad():
        assert panel_products.fits(numbers(40, 64), numbers(64, 64))
        assert not panel_products.fits(numbers(40, 64), numbers(64, 64).requires_grad_())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_gives_what_torchs_gives(bias: bool, dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(64, 100, bias=bias, dtype=dtype), nn.Tanh())
    x = numbers(2, 30, 64).to(dtype)
    expected = module(x)
    panel_products.install(module)
    assert type(module[0]) is PanelLinear
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_a_packed_weight_goes_when_the_weight_goes() -> None:
    gc.collect()
    weight, kept = numbers(64, 64), len(panel_products._PACKED)
    panel_products.product(numbers(40, 64), weight, torch.empty(40, 64))
    assert len(panel_products._PACKED) == kept + 1
    del weight
    gc.collect()
    assert len(panel_products._PACKED) == kept


def test_a_weight_that_has_learned_is_packed_again() -> None:
    with torch.inference_mode(False), torch.no_grad():
        weight, x = numbers(64, 64), numbers(40, 64, seed=1)
        for _ in range(2):
            assert error(panel_products.product(x, weight, torch.empty(40, 64)), x, weight) < 2**-20
            weight.mul_(2)
        panel_products.product(x, weight, torch.empty(40, 64))
        weight.data = numbers(64, 64, seed=2)  # as training takes its best weights back
        assert error(panel_products.product(x, weight, torch.empty(40, 64)), x, weight) < 2**-20


def test_evaluation_says_the_same_with_panel_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pico.write(tmp_path / "m", "llama", hidden_size=64, intermediate_size=128)
    family, tokens = families.FAMILIES["llama"], pico.tokens(4, 64)

    def quality() -> list[float]:
        found = quality_metrics.reference(base, family, tokens, None).quality
        return [found.perplexity, found.perplexity_stderr]

    packed = quality()
    monkeypatch.setattr(panel_products, "works", lambda: False)
    assert packed == pytest.approx(quality(), rel=1e-6)
    assert packed != quality(), "the kernel was used"


def test_logits_of_bfloat16_are_not_rounded_to_it() -> None:
    head = nn.Linear(64, 128, bias=False, dtype=torch.bfloat16)
    head.__class__ = products.Head
    x = numbers(40, 64).bfloat16()
    rounded = head(x)
    head.out = torch.empty(40, 128)
    found = head(x)
    assert found.dtype == torch.float32 and not torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found.bfloat16(), rounded, rtol=2**-7, atol=0)
