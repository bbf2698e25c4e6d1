#!/usr/bin/env bash
# torch 2.13.0 (CPU), Linux x86-64. Seen 2026-11-29 on an AMD EPYC of the Zen 5 generation (avx512_bf16, no amx_*).
#
# Expected: where a linear is more than four times as fast in bfloat16 as in float32, causal attention
# (scaled_dot_product_attention, mostly two products) gains by bfloat16 too, perhaps half as much.
# Seen: on one core a linear runs at 480 GFLOP/s in bfloat16 and 105 in float32, and causal attention of 4 x 9 heads x 512
# x 64 takes as long in bfloat16 as in float32, within a tenth: 70 to 80 GFLOP/s on two cores either way. Of a forward pass
# of SmolLM2-135M in bfloat16 over windows of 512 tokens it was a third of the time, though it is 4 % of the operations.
# It needs an AMD CPU with avx512_bf16; on others it says so and ends with status 3. Exit status 0 while it is so.
set -euo pipefail
if ! grep -q AuthenticAMD /proc/cpuinfo || ! grep -qw avx512_bf16 /proc/cpuinfo; then
  echo "not an AMD CPU with avx512_bf16: nothing to see"; exit 3
fi
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
"$work/venv/bin/python" - <<'PY'
import time

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

torch.manual_seed(0)
torch.set_num_threads(1)
x, weight = torch.randn(2048, 576), torch.randn(1536, 576)
heads = [torch.randn(4, 512, 9, 64).transpose(1, 2) for _ in range(3)]


def least(work) -> float:
    seconds = []
    for _ in range(12):
        begun = time.thread_time()  # of this thread: what else runs on the machine does not count
        work()
        seconds.append(time.thread_time() - begun)
    return min(seconds)


ratios = {}
with torch.inference_mode():
    works = {
        "linear": lambda dtype: (lambda a, b: lambda: linear(a, b))(x.to(dtype), weight.to(dtype)),
        "causal attention": lambda dtype: (lambda qkv: lambda: scaled_dot_product_attention(*qkv, is_causal=True))(
            [each.to(dtype) for each in heads]
        ),
    }
    for name, made in works.items():
        single, half = least(made(torch.float32)), least(made(torch.bfloat16))
        ratios[name] = single / half
        print(f"{name:17} float32 {1e3 * single:6.1f} ms, bfloat16 {1e3 * half:6.1f} ms: {ratios[name]:.2f} times as fast")
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
assert ratios["linear"] > 3 and ratios["causal attention"] < 1.3, "this has changed"
PY
