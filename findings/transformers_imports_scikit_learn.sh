#!/bin/sh
# transformers 5.19.0: AutoModelForCausalLM imports scikit-learn wherever it is installed (lm-eval installs it), and with
# it scipy and pandas where that is there: `generation/candidate_generator.py` wants one function, roc_curve, for assisted
# generation with a confidence threshold, and imports it at its top, not where it is called.
# Expected: what only assisted generation uses is imported by assisted generation.
# Seen 2026-11-28, Linux, Python 3.11, torch 2.13.0, scikit-learn 1.9.1, pandas 3.1.1: 437 MB resident with it, 331 MB
# without (where pyarrow is installed too 571 and 428), and 1.8 of 10.6 seconds of import. Printed to stderr: the memory.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q torch==2.13.0 transformers==5.19.0 scikit-learn==1.9.1 pandas==3.1.1
cat > "$place/try.py" <<'PY'
import sys

if sys.argv[1] == "hidden":
    sys.modules["sklearn"] = None
from transformers import AutoModelForCausalLM

assert AutoModelForCausalLM
loaded = [name for name in ("sklearn", "scipy", "pandas") if sys.modules.get(name)]
print(f"scikit-learn {sys.argv[1]}: {' '.join(loaded) or 'none'} loaded")
resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(resident.split()[1], "KB", file=sys.stderr)
PY
for way in installed hidden; do
  "$place/env/bin/python" "$place/try.py" "$way"
done > "$place/said"
cat "$place/said"
cat > "$place/expected" <<'TEXT'
scikit-learn installed: sklearn scipy pandas loaded
scikit-learn hidden: none loaded
TEXT
cmp "$place/said" "$place/expected"
