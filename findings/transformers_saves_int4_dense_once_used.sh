#!/usr/bin/env bash
# transformers 5.19.0, compressed-tensors 0.17.0 (PyPI), torch 2.13.0, Linux x86-64. Seen 2026-11-29.
#
# Expected: a compressed-tensors folder (4 bits, pack-quantized) that is loaded with from_pretrained and written with
# save_pretrained, say after its chat template was mended, is the same folder: packed codes, as small as before.
# Seen: it is, unless the model was used in between. After one forward pass (an answer, to see that it still works) no linear of
# the new folder has codes: weights are dense bfloat16 under `weight`, beside scales and shapes that nothing reads, in a file
# 2.5 times the size (nearly 4 times where embeddings are small beside linears). config.json still says pack-quantized, 4 bits;
# only quantization_status, now "decompressed", tells. No warning is given while it is written, and transformers reads it back
# with the same logits. vLLM 0.32.0 (CPU), which served the first folder, does not start on this one: "There is no module or
# parameter named 'layers.0.mlp.down_proj.weight'". `hubplugin verify FOLDER` says that no linear is stored as codes.
# Exit status 0 while that is so.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python=${PYTHON:-}  # one that has these versions; otherwise they are installed
if [ -z "$python" ]; then
  python3.11 -m venv "$work/venv"
  python="$work/venv/bin/python"
  "$python" -m pip install --quiet torch==2.13.0 transformers==5.19.0 compressed-tensors==0.17.0 accelerate==1.15.0 numpy==2.3.5
fi
cat > "$work/save.py" <<'PY'
import json
import sys
from pathlib import Path

import compressed_tensors
import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

LINEAR = "model.layers.0.mlp.down_proj."
work = Path(sys.argv[1])
print("transformers", transformers.__version__, "compressed-tensors", compressed_tensors.__version__)


def quantized(folder):
    """A small random Llama with 4-bit codes in groups of 64, as compressed-tensors itself packs and writes them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=512, num_hidden_layers=2, tie_word_embeddings=True, **sizes)).bfloat16()
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    config = QuantizationConfig(
        config_groups=groups, ignore=["lm_head"], format="pack-quantized", quantization_status="frozen"
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            largest = module.weight.detach().reshape(len(module.weight), -1, 64).abs().amax(2)
            module.weight_scale.data = (largest / 7.5).to(module.weight_scale.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


def described(folder):
    """What a folder says it is, what one of its linears is, and the bytes of its weights."""
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        held = {name.removeprefix(LINEAR) for name in file.keys() if name.startswith(LINEAR)}
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder.name}: {said['format']}, {said['quantization_status']}, {sorted(held)}, {size:,} bytes")
    return said["format"], said["quantization_status"], held, size


made, unused, used = (work / name for name in ("made", "saved before use", "saved after use"))
quantized(made)
ids = torch.arange(20)[None]
model = AutoModelForCausalLM.from_pretrained(made)
model.save_pretrained(unused)
with torch.no_grad():
    before = model(ids).logits
    model.save_pretrained(used)
    after = AutoModelForCausalLM.from_pretrained(used)(ids).logits
print("the same logits:", torch.equal(before, after))
packed, same, dense = (described(folder) for folder in (made, unused, used))
grown = dense[3] > 2 * packed[3] and "weight" in dense[2] and "weight_packed" not in dense[2]
named = dense[:2] == ("pack-quantized", "decompressed")
sys.exit(not (packed == same and named and grown and torch.equal(before, after)))
PY
"$python" "$work/save.py" "$work" 2> "$work/said" || { tail -5 "$work/said"; exit 1; }
