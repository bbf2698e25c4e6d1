"""Norms of vLLM's CPU build by its own C++ kernels: as exact as its other way, whatever the strides."""

import subprocess
import sys

import pytest

from serve import vllm_settings

# In a process of its own: importing vLLM changes the one that does.
CODE = """
import itertools, sys, torch
for feature in sys.argv[1:]:  # of the CPU, that vLLM is not to find: it loads other kernels then
    setattr(torch.cpu, feature, lambda: False)
from serve import plugin
plugin.know_norms()
plugin.know_norms()
from vllm import ir
norm, added = (getattr(ir.ops, name).impls for name in ("rms_norm", "fused_add_rms_norm"))
ours, native = norm["hubplugin"], norm["native"]
both, apart = added["hubplugin"], added["native"]
assert both.inplace and not ours.inplace

def exact(x, weight):
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double()

def error(found, wanted):
    return float((found.double() - wanted).abs().max() / wanted.abs().max())

torch.manual_seed(0)
roundings = {torch.float32: 3e-7, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
if not torch.cpu._is_avx512_bf16_supported():  # those kernels cut off
    whole = torch.randn(2, 64).bfloat16()
    assert not ours.supports_args(whole, whole[0], 1e-5) and not both.supports_args(whole, whole, whole[0], 1e-5)
    del roundings[torch.bfloat16]
for (dtype, rounding), (rows, width) in itertools.product(roundings.items(), ((1, 576), (7, 576), (3, 40), (200, 24))):
    x, residual = torch.randn(rows, width).to(dtype), 50 * torch.randn(rows, width).to(dtype)
    weight = (torch.rand(width) + 0.5).to(dtype)
    assert ours.supports_args(x, weight, 1e-5) and both.supports_args(x, residual, weight, 1e-5)
    before = x.clone()
    assert error(ours.impl_fn(x, weight, 1e-5), exact(x, weight)) <= rounding
    assert torch.equal(x, before)
    wanted = exact(x.double() + residual.double(), weight)
    stream = apart.impl_fn(x, residual, weight, 1e-5)[1]
    normed, kept = both.impl_fn(x, residual, weight, 1e-5)
    assert normed.data_ptr() == x.data_ptr() and kept.data_ptr() == residual.data_ptr()
    assert torch.equal(kept, stream) and error(normed, wanted) <= 2 * rounding

heads = torch.randn(4, 3, 128).half()[..., :64]  # of a projection that other heads are part of
weight = torch.ones(64).half()
assert error(ours.impl_fn(heads, weight, 1e-5), exact(heads, weight)) <= 2.0**-11
assert not both.supports_args(heads, heads, weight, 1e-5)
assert not both.supports_args(heads.contiguous(), heads, weight, 1e-5)
whole = heads.contiguous()
assert both.supports_args(whole, whole, weight, 1e-5)
for args in ((whole, None, 1e-5), (whole, weight.float(), 1e-5), (whole, weight, 1e-5, 32)):
    assert not ours.supports_args(*args) and not both.supports_args(whole, *args)
print("exact")
"""


@pytest.mark.serve
@pytest.mark.parametrize(
    "hidden", [[], ["_is_avx512_bf16_supported"], ["_is_avx512_supported", "_is_avx512_bf16_supported"]]
)
def test_the_norms_are_as_exact_as_their_data_type_whatever_the_strides(hidden: list[str]) -> None:
    if vllm_settings.find_device() != "cpu":
        pytest.skip("vLLM's norms on GPUs are its own")
    done = subprocess.run([sys.executable, "-c", CODE, *hidden], capture_output=True, text=True, check=False)
    assert done.stdout.strip().splitlines()[-1:] == ["exact"], done.stderr[-3000:]
