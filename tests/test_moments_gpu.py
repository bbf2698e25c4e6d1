"""The Triton second moments against float64: in Triton's interpreter, and on a CUDA device where there is one."""

from typing import Any

import pytest
import torch
import triton_cases
from triton_cases import SHAPES


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("triton")
    return triton_cases.interpreted("moments", tmp_path_factory.mktemp("triton"))


def check(total: torch.Tensor, x: torch.Tensor) -> None:
    """total holds x^T x plus that of x's first half, on and below the diagonal."""
    from hubplugin.kernels.xtx_cuda import mirror

    x, half = x.double(), x[: len(x) // 2].double()
    want = x.T @ x + half.T @ half
    largest = want.diagonal().max()
    assert (total.double() - want).tril().abs().max() <= 1e-6 * largest
    mirror(total)
    assert torch.equal(total, total.T) and (total.double() - want).abs().max() <= 1e-6 * largest


@pytest.mark.parametrize("shape", SHAPES)
def test_the_lower_triangle_is_the_second_moments(shape: tuple[int, int], answers: dict[str, Any]) -> None:
    check(answers[f"moments {shape}"], triton_cases.activations(*shape))


def test_a_product_of_different_activations_is_added_whole(answers: dict[str, Any]) -> None:
    left, right = triton_cases.activations(130, 37).double(), triton_cases.activations(130, 261).double()
    assert (answers["product"].double() - 1 - left.T @ right).abs().max() <= 1e-4


def test_full_precision_activations_are_added_in_full_precision() -> None:
    pytest.importorskip("triton")
    from hubplugin.kernels.xtx_cuda import add_lower

    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(24, 24)
    add_lower(total, x)
    add_lower(total, x[:20])
    check(total, x)


@pytest.mark.parametrize(
    "total", [torch.zeros(5, 5), torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 8)[:, ::2]]
)
def test_a_total_of_another_kind_is_refused(total: torch.Tensor) -> None:
    pytest.importorskip("triton")
    from hubplugin.kernels.xtx_cuda import add_lower

    with pytest.raises(ValueError, match=r"float32 \[4, 4\]"):
        add_lower(total, torch.zeros(3, 4))


def test_a_matrix_longer_than_a_strip_is_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from hubplugin.kernels import xtx_cuda

    monkeypatch.setattr(xtx_cuda, "STRIP", 4)
    total = torch.arange(100.0).reshape(10, 10)
    want = total.tril() + total.tril(-1).T
    xtx_cuda.mirror(total)
    assert torch.equal(total, want)


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_the_callers_precision_comes_back_even_after_a_failure(before: str) -> None:
    pytest.importorskip("triton")
    from hubplugin.kernels.xtx_cuda import ieee_products

    settings = torch.backends.cuda.matmul
    found, settings.fp32_precision = settings.fp32_precision, before
    try:
        with pytest.raises(ZeroDivisionError), ieee_products():
            assert settings.fp32_precision == "ieee"
            raise ZeroDivisionError
        assert settings.fp32_precision == before
    finally:
        settings.fp32_precision = found


@pytest.mark.slow
def test_the_kernel_compiles_for_hoppers_tensor_cores_within_its_shared_memory() -> None:
    pytest.importorskip("triton")
    from hubplugin.kernels import xtx_cuda

    sizes = {"LOWER": True, "TALL": xtx_cuda.TALL, "WIDE": xtx_cuda.WIDE, "DEEP": xtx_cuda.DEEP}
    kinds = {"total": "*fp32", "left": "*bf16", "right": "*bf16"}
    options = {"num_warps": 8, "num_stages": 4}
    aligned = ("left", "right", "left_pitch", "right_pitch")
    made = triton_cases.compiled_for_hopper(xtx_cuda._add_tiles, kinds, sizes, options, aligned)
    assert "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16" in made.asm["ptx"]
    assert made.metadata.shared <= 227 * 1024


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(40000, 1000), (513, 2051), (17, 8)])
def test_moments_on_the_device(shape: tuple[int, int], dtype: torch.dtype) -> None:
    from hubplugin.kernels.xtx_cuda import add_lower, add_product

    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    total = torch.zeros(shape[1], shape[1], device="cuda")
    add_lower(total, x.cuda())
    add_lower(total, x[: len(x) // 2].cuda())
    whole = torch.zeros(5, shape[1], device="cuda")
    add_product(whole, x[:, :5].cuda(), x.cuda())  # a pitch that is not a row's length
    assert (whole.cpu().double() - x[:, :5].double().T @ x.double()).abs().max() <= 2e-4 * len(x)
    # tensor cores truncate where they add: 1e-6 holds for the few hundred tokens of the other tests
    check_loosely(total.cpu(), x)


def check_loosely(total: torch.Tensor, x: torch.Tensor) -> None:
    x, half = x.double(), x[: len(x) // 2].double()
    want = x.T @ x + half.T @ half
    assert (total.double() - want).tril().abs().max() <= 1e-4 * want.diagonal().max()
