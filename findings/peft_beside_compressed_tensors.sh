#!/bin/sh
# peft 0.21.2 with transformers 5.19.0 and compressed-tensors 0.17.0: an adapter cannot be put beside a model whose weights
# are in compressed-tensors' packed format right after `from_pretrained`. Linears get their `weight` when the model first
# runs, and PEFT looks at it before: AttributeError: 'Linear' object has no attribute 'weight'. After one forward pass, or
# with CompressedTensorsConfig(run_compressed=False), the same two lines work.
# Expected: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter), as for other formats.
# Seen 2026-11-29, Linux, Python 3.11, torch 2.13.0, on a random Llama of two layers.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q torch==2.13.0 transformers==5.19.0 peft==0.21.2 compressed-tensors==0.17.0
cat > "$place/try.py" <<'PY'
import sys

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

place, way = sys.argv[1:]
if way == "write":
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    scheme = {"config_groups": groups, "format": "pack-quantized", "ignore": ["lm_head"], "quantization_status": "compressed"}
    apply_quantization_config(model, QuantizationConfig(**{**scheme, "quantization_status": "frozen"}))
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.data.view(len(module.weight), -1, 32).abs().amax(-1) / 7
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(place)
    compressor.update_config(place)
    raise SystemExit
options = {"quantization_config": CompressedTensorsConfig(run_compressed=False)} if way == "not compressed" else {}
model = AutoModelForCausalLM.from_pretrained(place, **options)
if way == "after a pass":
    model(input_ids=torch.tensor([[1, 2, 3]]))
try:
    get_peft_model(model, LoraConfig(target_modules=["q_proj"]))(input_ids=torch.tensor([[1, 2, 3]]))
    print(f"{way}: works")
except AttributeError as error:
    print(f"{way}: {error}")
PY
"$place/env/bin/python" "$place/try.py" "$place/model" write 2> "$place/err" || { cat "$place/err"; exit 1; }
for way in "right away" "after a pass" "not compressed"; do
  "$place/env/bin/python" "$place/try.py" "$place/model" "$way" 2> "$place/err" || { cat "$place/err"; exit 1; }
done > "$place/said"
cat "$place/said"
cat > "$place/expected" <<'TEXT'
right away: 'Linear' object has no attribute 'weight'
after a pass: works
not compressed: works
TEXT
cmp "$place/said" "$place/expected"
