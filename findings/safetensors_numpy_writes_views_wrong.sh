#!/bin/sh
# safetensors 0.8.0: safetensors.numpy.save and save_file write another matrix than they were given where the array is a
# transposed view (or in Fortran's order): the shape is right, the numbers are in the order of memory. No error, no warning.
# Expected: what releases up to 0.7.0 do, which write the right numbers, or the error that safetensors.torch raises for such a
# tensor ("You are trying to save a non contiguous tensor"). The docstring asks for contiguous arrays; nothing checks.
# Whoever stores kernels transposed ({"w": kernel.T}, as converters from Flax or Keras to torch do) gets a model that loads and
# answers nonsense; a square weight does not even have another shape. np.ascontiguousarray() before saving is the way around.
# Seen 2026-11-29, Linux x86-64, Python 3.11, numpy 2.3.5. Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/try.py" <<'PY'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
read = load(save({"w": kernel.T}))["w"]
right = bool((read == kernel.T).all())
print(safetensors.__version__, "saved", kernel.T.tolist(), "read", read.tolist(), "right" if right else "WRONG")
sys.exit(right != (sys.argv[1] == "right"))
PY
for version in 0.7.0 0.8.0; do
  python3 -m venv "$place/$version"
  "$place/$version/bin/pip" install -q "safetensors==$version" numpy==2.3.5
done
"$place/0.7.0/bin/python" "$place/try.py" right
"$place/0.8.0/bin/python" "$place/try.py" wrong
