#!/bin/sh
# safetensors 0.8.0 with torch 2.13.0: two reads of a tensor from one open file are the same memory. safe_open(path, "pt") hands
# out views of one private copy of the file, so what is done in place to a tensor that was read (w += delta, w.mul_(mask),
# training) is what get_tensor and get_slice read from then on, though the file holds the old numbers. No error, no warning.
# Expected: the numbers of the file, as a second safe_open gives them, and as framework "np" does, which copies.
# Whoever merges an adapter in place and reads the weight again from the same open file to see how far it moved sees
# nothing; whoever resets a model by reading once more trains on. .clone(), or another safe_open, is the way around.
# Seen 2026-11-30, Linux x86-64, Python 3.11. Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q safetensors==0.8.0 torch==2.13.0 numpy==2.3.5
"$place/env/bin/python" - "$place/m.safetensors" <<'PY'
import sys

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import save_file

path = sys.argv[1]
save_file({"w": torch.zeros(4)}, path)
with safe_open(path, "pt") as file, safe_open(path, "np") as copying:
    file.get_tensor("w").add_(7)
    copying.get_tensor("w").__iadd__(7)
    read = {"again": file.get_tensor("w"), "slice": file.get_slice("w")[:], "numpy": copying.get_tensor("w")}
with safe_open(path, "pt") as file:
    read["opened again"] = file.get_tensor("w")
found = {name: float(values[0]) for name, values in read.items()}
print(safetensors.__version__, torch.__version__, found)
sys.exit(found != {"again": 7.0, "slice": 7.0, "numpy": 0.0, "opened again": 0.0})
PY
