#!/usr/bin/env bash
# torchao 0.18.0, transformers 5.19.0, torch 2.13.0 (PyPI), Linux x86-64. Seen 2026-11-29.
#
# Expected: of a model quantized with TorchAoConfig(IntxWeightOnlyConfig(...)) and saved by save_pretrained, 4 bits take about
# half and 2 bits a quarter of what 8 bits take on disk.
# Seen: all three files have the same size. The default packing of these tensors is a whole int8 for each weight, whatever its
# dtype says, in the file as in memory: a "2-bit" model that is published this way saves nothing over an 8-bit one, and
# its bits per weight cannot be told from its bytes. Outputs differ as 2, 4 and 8 bits do, and survive the way through the file.
# Exit status 0 while that is so.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 torchao==0.18.0 numpy==2.3.5
cat > "$work/sizes.py" <<'PY'
import os
import sys

import torch
from torchao.quantization import IntxWeightOnlyConfig
from torchao.quantization.granularity import PerGroup
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TorchAoConfig

work = sys.argv[1]
torch.manual_seed(0)
config = LlamaConfig(hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=512, tie_word_embeddings=True)  # fmt: skip
dense, ids = LlamaForCausalLM(config).bfloat16(), torch.arange(64)[None]
dense.save_pretrained(f"{work}/dense")
expected, sizes, errors = dense(ids).logits.float(), {}, {}
for dtype in (torch.int8, torch.int4, torch.int2):
    chosen = TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(64)))
    model = AutoModelForCausalLM.from_pretrained(f"{work}/dense", quantization_config=chosen, dtype=torch.bfloat16)
    out = f"{work}/{dtype}"
    model.save_pretrained(out)
    again = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    logits = again(ids).logits
    assert torch.equal(logits, model(ids).logits)
    sizes[dtype] = os.path.getsize(f"{out}/model.safetensors")
    errors[dtype] = float((logits.float() - expected).norm() / expected.norm())
    print(f"{dtype}: {sizes[dtype]:,} bytes, relative error of logits {errors[dtype]:.3f}")
print(f"dense: {os.path.getsize(f'{work}/dense/model.safetensors'):,} bytes")
alike = max(sizes.values()) - min(sizes.values()) < 0.01 * max(sizes.values())
sys.exit(not (alike and errors[torch.int2] > 2 * errors[torch.int4] > 4 * errors[torch.int8]))
PY
"$work/venv/bin/python" "$work/sizes.py" "$work" 2> "$work/said" || { tail -5 "$work/said"; exit 1; }
