"""RMS norms on a CPU by vLLM's own C++ kernels, which vLLM 0.32 builds for CPUs and takes on GPUs alone: one pass over
a row in place of nine operations of torch, each with its call. Imported by vLLM alone, as a plugin of ours asks.

`--ir-op-priority` chooses them (`vllm_settings`); where arguments do not suit, vLLM falls back on its own. They round
once, after the weight, and torch's operations twice (tests/test_rms_norm.py).
"""

import torch
from torch import Tensor
from vllm import ir
from vllm.platforms import current_platform

from serve.vllm_settings import NORMS

current_platform.import_kernels()  # torch.ops._C
# vLLM's kernels for CPUs without this instruction cut float32 off to bfloat16 where others round
ROUNDS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported()


def suits(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    """Whether the kernel normalizes whole rows of x, [..., hidden], by a weight of its data type, and rounds to it."""
    if x.dtype == torch.bfloat16 and not ROUNDS_BFLOAT16:
        return False
    return weight is not None and weight.dtype == x.dtype and variance_size is None


def suits_in_place(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    """As `suits`; rows have to follow each other in both, because the kernel does not ask for strides."""
    return suits(x, weight, epsilon, variance_size) and x.is_contiguous() and x_residual.is_contiguous()


@ir.ops.rms_norm.register_impl(NORMS, supports_args=suits)
def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension."""
    x = x.contiguous()  # norms of heads get views of a wider projection
    normalized = torch.empty_like(x)
    torch.ops._C.rms_norm(normalized, x, weight, epsilon)
    return normalized


@ir.ops.fused_add_rms_norm.register_impl(NORMS, supports_args=suits_in_place, inplace=True)
def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """x_residual becomes x + x_residual, x its norm."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
