#!/usr/bin/env bash
# auto-round 0.16.1, transformers 5.23.0, torch 2.13.0 (PyPI), Linux x86-64. Seen 2026-11-30.
#
# Expected: AutoRound leaves what it does not quantize as it is, so that of a bfloat16 model embedding and norms are bfloat16
# and config.json says "dtype": "bfloat16" whatever the format: engines compute in the base's own dtype.
# Seen: with format="auto_gptq" the tensors are bfloat16 and config.json says float16, so that vLLM and transformers, which go
# by config.json, compute the variant in float16: activations above 65504, which bfloat16 holds, become infinite there, and
# a comparison with the base compares two dtypes. With format="auto_round" config.json says bfloat16.
# Exit status 0 while that is so.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 auto-round==0.16.1 numpy==2.4.6
cat > "$work/formats.py" <<'PY'
import json
import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from safetensors import safe_open
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

work = Path(sys.argv[1])
torch.manual_seed(0)
config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=512, tie_word_embeddings=True)  # fmt: skip
model = LlamaForCausalLM(config).bfloat16()
model.save_pretrained(work / "base")
words = {f"w{each}": each for each in range(512)}
PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0"))).save_pretrained(work / "base")
dtypes = {}
for name in ("auto_round", "auto_gptq"):
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in torch.randint(512, (4, 64)).split(1)]
    tuner = AutoRound(str(work / "base"), scheme="W4A16", group_size=64, dataset=rows, iters=1, nsamples=4, seqlen=64,
                      batch_size=1, enable_torch_compile=False, device_map="cpu")  # fmt: skip
    tuner.quantize_and_save(str(work / name), format=name)
    (file,) = (work / name).rglob("model.safetensors")
    said = json.loads((file.parent / "config.json").read_text())
    with safe_open(file, "pt") as tensors:
        kept = {str(tensors.get_tensor(each).dtype) for each in ("model.norm.weight", "model.embed_tokens.weight")}
    dtypes[name] = (said["dtype"], *sorted(kept))
    print(f"{name}: config.json says {said['dtype']}, embedding and norm are {', '.join(sorted(kept))}")
sys.exit(dtypes != {"auto_round": ("bfloat16", "torch.bfloat16"), "auto_gptq": ("float16", "torch.bfloat16")})
PY
"$work/venv/bin/python" "$work/formats.py" "$work" 2> "$work/said" | grep 'config.json says' || { tail -15 "$work/said"; exit 1; }
