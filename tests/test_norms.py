"""Norms in one pass: those of transformers' own classes, but for the last bit; what is another function stays."""

import copy

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mixtral.modeling_mixtral import MixtralRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from hubplugin.kernels.instructions import rms_norm


def filled(kind: type[nn.Module], width: int, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    norm = kind(width, 1e-5).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(width, generator=torch.Generator().manual_seed(1)))
    return norm.requires_grad_(False)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, MixtralRMSNorm, Phi3RMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("shape", [(1, 1, 64), (3, 7, 48), (2, 5, 4, 33)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_norm_gives_what_its_class_gives_but_for_the_last_bits(
    kind: type[nn.Module], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    norm = filled(kind, shape[-1], dtype)
    expected = norm(x)
    rms_norm.install(norm)
    assert type(norm) is not kind and isinstance(norm, kind)
    found = norm(x)
    assert found.dtype == dtype and found.shape == x.shape
    assert torch.allclose(found.float(), expected.float(), rtol=rms_norm.LAST_BITS[dtype], atol=0)
    assert dtype == torch.float32 or float((found == expected).float().mean()) > 0.99
    assert torch.equal(copy.deepcopy(norm)(x), found), "a twin of a block norms as the block does"


def test_a_norm_is_taken_over_once() -> None:
    norm = filled(LlamaRMSNorm, 32)
    rms_norm.install(norm)
    taken = type(norm)
    rms_norm.install(norm)
    assert type(norm) is taken and taken.__mro__[1] is LlamaRMSNorm


def test_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0]]).bfloat16()  # mean square 25 / 4
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0]).bfloat16()
    assert rms_norm.normalized(x, weight, 0.0).tolist() == [[1.203125, 3.203125, 0.0, 0.0]]  # 1.2 and 1.6, rounded


def test_not_a_number_stays_one() -> None:
    x = torch.tensor([[1.0, float("nan")], [1.0, float("inf")], [1.0, 1.0]]).bfloat16()
    found = rms_norm.normalized(x, torch.ones(2).bfloat16(), 1e-6)
    assert found[0].isnan().all() and found[1, 1].isnan() and found[2].isfinite().all()


def test_what_adds_one_to_its_weight_or_has_a_bias_keeps_its_class() -> None:
    for norm in (Gemma2RMSNorm(32), nn.LayerNorm(32), nn.LayerNorm(32, bias=False), nn.Linear(32, 32)):
        before = type(norm)
        rms_norm.install(norm)
        assert type(norm) is before


@pytest.mark.parametrize("learns", ["hidden", "weight", "both"])
def test_gradients_and_mixed_precisions_go_through_the_class_itself(learns: str) -> None:
    norm, x = LlamaRMSNorm(32).requires_grad_(learns != "hidden"), torch.randn(4, 32)
    x.requires_grad_(learns != "weight")
    expected = norm(x)
    rms_norm.install(norm)
    found = norm(x)
    assert torch.equal(found, expected) and found.requires_grad
    with torch.no_grad():
        assert torch.equal(norm(x.bfloat16()), LlamaRMSNorm(32)(x.bfloat16()))
        assert torch.equal(norm(x.double()), LlamaRMSNorm(32)(x.double()))
