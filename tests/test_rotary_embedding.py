"""Rotary position embedding in one pass against transformers' functions, and which attention it is given to."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.cohere.modeling_cohere import CohereAttention
from transformers.models.glm4.modeling_glm4 import Glm4Attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig, apply_rotary_pos_emb
from transformers.models.phi3.modeling_phi3 import Phi3Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from hubplugin.kernels import rotary_embedding as rotary

TOKENS, WIDTH = 40, 16


def inputs(dtype: torch.dtype, sequences: int = 2, angles: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries of 3 heads and keys of 1 as linears make them; cosines and sines of positions up to TOKENS."""
    torch.manual_seed(0)
    q, k = (torch.randn(sequences, TOKENS, heads, WIDTH).to(dtype).transpose(1, 2) for heads in (3, 1))
    turns = (
        torch.arange(TOKENS)[None, :, None] * torch.logspace(0, -3, WIDTH // 2) + torch.arange(angles)[:, None, None]
    )
    both = torch.cat((turns, turns), dim=-1)
    return q, k, both.cos().to(dtype), both.sin().to(dtype)


@pytest.mark.parametrize("angles", [1, 2])
@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 2**-21), (torch.bfloat16, 2**-8)])
def test_it_is_the_formula_rounded_once(dtype: torch.dtype, bits: float, angles: int) -> None:
    q, k, cos, sin = inputs(dtype, angles=angles)
    exact = apply_rotary_pos_emb(q.double(), k.double(), cos.double(), sin.double())
    found = rotary._in_one_pass(apply_rotary_pos_emb)(q, k, cos, sin)
    for one, each in zip(found, exact, strict=True):
        assert one.dtype == dtype and one.transpose(1, 2).is_contiguous()
        assert torch.allclose(one.double(), each, rtol=bits, atol=bits)


def test_a_quarter_turn_swaps_halves_and_none_changes_nothing() -> None:
    x = torch.arange(2 * TOKENS * WIDTH, dtype=torch.float32).view(2, 1, TOKENS, WIDTH)
    none, whole = torch.zeros(1, TOKENS, WIDTH), torch.ones(1, TOKENS, WIDTH)
    assert torch.equal(rotary.rotated(x, whole, none), x)
    first, second = x.chunk(2, dim=-1)
    assert torch.equal(rotary.rotated(x, none, whole), torch.cat((-second, first), dim=-1))


def test_angles_differ_between_sequences() -> None:
    q, _, cos, sin = inputs(torch.float32, angles=2)
    alone = [rotary.rotated(q[one : one + 1], cos[one : one + 1], sin[one : one + 1]) for one in range(2)]
    assert torch.equal(rotary.rotated(q, cos, sin), torch.cat(alone))


def test_what_does_not_fit_goes_the_family_s_own_way() -> None:
    asked: list[Any] = []

    def own(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        asked.append((given, named))
        return apply_rotary_pos_emb(*given, **named)

    rotate = rotary._in_one_pass(own)
    q, k, cos, sin = inputs(torch.float32)
    rotate(q, k, cos, sin)
    assert not asked
    rotate(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=2)  # another order of dimensions
    rotate(q.double(), k.double(), cos.double(), sin.double())
    rotate(q.requires_grad_(), k, cos, sin)[0].sum().backward()
    assert len(asked) == 3 and q.grad is not None


def test_families_that_rotate_like_llama_are_taken_over_and_others_are_not() -> None:
    assert all(rotary._fused(kind) for kind in (LlamaAttention, Qwen3Attention, Phi3Attention))
    assert not any(rotary._fused(kind) for kind in (CohereAttention, Glm4Attention))  # neighbours turn, not halves
    assert rotary._fused(torch.nn.Linear) is None


def test_attention_that_is_taken_over_gives_the_same_once_installed_twice_and_copied() -> None:
    config = LlamaConfig(hidden_size=48, num_attention_heads=3, num_key_value_heads=1, head_dim=WIDTH)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    attention = LlamaAttention(config, 0)
    x, (_, _, cos, sin) = torch.randn(2, TOKENS, 48), inputs(torch.float32)
    with torch.inference_mode():
        before, _ = attention(x, (cos, sin))
        rotary.install(attention)
        kind = type(attention)
        rotary.install(attention)
        after, _ = copy.deepcopy(attention)(x, (cos, sin))
    assert kind is type(attention) is not LlamaAttention and isinstance(attention, LlamaAttention)
    assert torch.allclose(before, after, rtol=0, atol=1e-6)
