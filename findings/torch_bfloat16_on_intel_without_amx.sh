#!/usr/bin/env bash
# torch 2.13.0 (CPU, oneDNN 3.12), Linux x86-64. Seen 2026-11-29 on an Intel Xeon of the Emerald Rapids generation whose
# virtual machine shows avx512_bf16 and avx512_fp16 but no amx_* flags.
#
# Expected: a VDPBF16PS does 64 operations where an FMA on float32 does 32, and the flag avx512_bf16 is there, so a linear
# in bfloat16 should be up to twice as fast as in float32 and never slower. On AMD cores with that flag it is.
# Seen: on one core a linear of 1024 x 576 x 1536 runs at 153 GFLOP/s in float32, 151 in float16 and 83 in bfloat16, through
# oneDNN's own avx512_core_bf16 kernel: a bfloat16 model takes nearly twice the time of the same one after `model.float()`.
# Intel's cores have one slow unit for VDPBF16PS beside two for FMA; bfloat16 pays there in AMX, which hypervisors hide.
# So the flag avx512_bf16 does not say that bfloat16 is worth computing in; vendor and amx_bf16 do.
# It needs an Intel CPU with avx512_bf16 and without amx_bf16; on others it says so and ends with status 3. Exit status 0
# while it is so.
set -euo pipefail
if ! grep -q GenuineIntel /proc/cpuinfo || ! grep -qw avx512_bf16 /proc/cpuinfo || grep -qw amx_bf16 /proc/cpuinfo; then
  echo "not an Intel CPU with avx512_bf16 and without amx_bf16: nothing to see"; exit 3
fi
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
"$work/venv/bin/python" - <<'PY'
import time

import torch

torch.manual_seed(0)
torch.set_num_threads(1)
rows, inputs, outputs = 1024, 576, 1536
x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
rates = {}
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    a, b, seconds = x.to(dtype), weight.to(dtype), []
    for _ in range(12):
        begun = time.thread_time()  # of this thread: what else runs on the machine does not count
        torch.nn.functional.linear(a, b)
        seconds.append(time.thread_time() - begun)
    rates[dtype] = 2 * rows * inputs * outputs / min(seconds) / 1e9
    print(f"{dtype!s:15} {rates[dtype]:6.0f} GFLOP/s on one core")
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
assert rates[torch.bfloat16] < 0.75 * rates[torch.float32], "this has changed"
PY
