#!/usr/bin/env bash
# torch 2.13.0 (CPU), Linux x86-64. Seen 2026-11-28 on an AMD EPYC with AVX2 and no AVX-512.
#
# Expected: where no instruction multiplies bfloat16, a product of bfloat16 matrices is computed in float32 after the
# inputs are widened, which costs a few percent: a 1024 x 1024 product has 1024 multiplications for each number widened.
# So running a model in its own dtype should be at worst as slow as float32.
# Seen: `a @ b` in bfloat16 takes 32 times as long as widening both sides by hand, multiplying in float32 and rounding
# back (2.6 s and 0.083 s for 1024 x 1024 on two cores: 0.8 and 26 GFLOP/s), to the same result. No warning says so: a
# bfloat16 model on such a CPU is dozens of times slower than after `model.float()`.
# It needs a CPU without AVX-512, on others it says so and ends with status 3. Exit status 0 while it is so.
set -euo pipefail
if grep -qw avx512f /proc/cpuinfo; then echo "this CPU has AVX-512: nothing to see"; exit 3; fi
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
"$work/venv/bin/python" - <<'PY'
import statistics
import time

import torch

torch.manual_seed(0)
a, b = (torch.randn(1024, 1024).bfloat16() for _ in range(2))


def seconds(work):
    work()
    times = []
    for _ in range(3):
        begun = time.monotonic()
        work()
        times.append(time.monotonic() - begun)
    return statistics.median(times)


def widened():
    return (a.float() @ b.float()).bfloat16()


direct, by_hand = seconds(lambda: a @ b), seconds(widened)
flop = 2 * 1024**3
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
print(f"a @ b in bfloat16          {direct:8.3f} s {flop / direct / 1e9:8.2f} GFLOP/s")
print(f"widened, in float32, back  {by_hand:8.3f} s {flop / by_hand / 1e9:8.2f} GFLOP/s")
print(f"ratio {direct / by_hand:.0f}")
difference = ((a @ b).float() - widened().float()).abs().max() / widened().float().abs().max()
print(f"largest difference {difference:.1e} of the largest number")
assert difference < 0.01 and direct > 8 * by_hand, "this has changed"
PY
