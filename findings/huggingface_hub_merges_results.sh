#!/bin/sh
# huggingface_hub 2.4.0: ModelCardData writes evaluation results that agree in task, dataset type, config, split and revision as
# one entry of model-index, under the name and the arguments of the first. A 25-shot score becomes a 0-shot one, a score on
# letters.txt one on speeches.txt; reading a card and saving it again is enough, whatever was edited.
# Expected: results with other dataset_args or another dataset_name stay apart, or an error; EvalResult's docstring gives
# dataset_args as a part of what was measured, and is_equal_except_value() compares them.
# Seen 2026-11-29, Python 3.11: 0.3 at num_few_shot 0 and 0.6 at num_few_shot 25 come back as two values at num_few_shot 0,
# without a word. A config or split of its own for each result keeps them apart.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q huggingface_hub==2.4.0
"$place/env/bin/python" - <<'PY'
from huggingface_hub import ModelCard

CARD = """---
model-index:
- name: m
  results:
  - task: {type: text-generation}
    dataset: {name: ARC, type: ai2_arc, config: ARC-Challenge, split: test, args: {num_few_shot: 0}}
    metrics: [{type: acc, value: 0.3}]
  - task: {type: text-generation}
    dataset: {name: ARC with examples, type: ai2_arc, config: ARC-Challenge, split: test, args: {num_few_shot: 25}}
    metrics: [{type: acc, value: 0.6}]
---
A card.
"""


def results(card):
    return [(one.dataset_name, one.dataset_args["num_few_shot"], one.metric_value) for one in card.data.eval_results]


read = ModelCard(CARD)
again = ModelCard(str(read))
print("written:   ", results(read))
print("read again:", results(again))
assert results(read) == [("ARC", 0, 0.3), ("ARC with examples", 25, 0.6)]
if results(again) == results(read):
    raise SystemExit("results stay apart")
assert results(again) == [("ARC", 0, 0.3), ("ARC", 0, 0.6)]
PY
