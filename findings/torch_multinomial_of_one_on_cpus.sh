#!/usr/bin/env bash
# torch 2.13.0 (CPU), Linux x86-64. Seen 2026-12-01 on an AMD EPYC (Zen 5), two cores.
#
# Expected: one token of each row's probabilities by torch.multinomial(p, 1) costs about what a running sum and a search
# for a uniform number cost, which is one pass over the vocabulary; it is what generate(do_sample=True) calls.
# Seen: for 128 rows of 49,152 tokens it takes seven times as long as softmax, cumsum and searchsorted together (98 ms
# for 13.5): it draws an exponential for every entry of the vocabulary, and one thread does it. Drawn tokens have the
# same distribution either way. Exit status 0 while it takes at least four times as long.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
"$work/venv/bin/python" - <<'PY'
import time

import torch

torch.manual_seed(0)
logits = torch.randn(128, 49152) * 3
p = logits.softmax(-1)


def least(work) -> float:
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def search():
    summed = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(summed, torch.rand(len(summed), 1) * summed[:, -1:])


few = torch.tensor([0.5, 0.3, 0.2]).repeat(20000, 1)
share = torch.multinomial(few, 1).flatten().bincount() / len(few)
assert torch.allclose(share, few[0], atol=0.02), share
draw, found = least(lambda: torch.multinomial(p, 1)), least(search)
print(f"torch {torch.__version__}: multinomial {draw * 1e3:.1f} ms, softmax, cumsum and searchsorted {found * 1e3:.1f} ms")
assert draw > 4 * found, "multinomial is no longer slow"
PY
