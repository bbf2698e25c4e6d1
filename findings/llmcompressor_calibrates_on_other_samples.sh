#!/bin/sh
# llm-compressor 0.14.0.1: which samples calibrate is drawn from torch's global generator, and oneshot takes no seed. Of a dataset
# with more rows than num_calibration_samples each call takes others, by whatever drew from the generator before, and so gives
# other weights: the same call after torch.manual_seed(1) and after (2) has two rows of eight in common. In a notebook that is
# every run of a cell but the first; a fresh process that draws nothing else begins with the same.
# Expected: the first rows, or the same ones each time. shuffle_calibration_samples=False gives the same ones each time, but
# not the first: the longest, and of 32 rows of one length 16, 31, 30, 29 and so on.
# Whoever compares two recipes compares two sets of samples. ds.select(range(n)) before oneshot is the way around: all rows
# are used then, and only their order is drawn.
# Seen 2026-11-30, Linux x86-64, Python 3.11, CPU. Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q llmcompressor==0.14.0.1 torch==2.13.0 transformers==5.17.0 compressed-tensors==0.19.0
HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false "$place/env/bin/python" - "$place/model" 2>/dev/null <<'PY'
import sys

import llmcompressor
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from loguru import logger
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

logger.remove()
folder, rows, tokens = sys.argv[1], 32, 64
sizes = dict(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), pad_token="a")
words.save_pretrained(folder)
ids = torch.randint(256, (rows, tokens))
ids[:, 0] = torch.arange(rows)  # a row's first token is its number


def quantized(seed, **options):
    """The rows that calibrate, in their order, and a number that tells the weights apart."""
    model, seen = LlamaForCausalLM.from_pretrained(folder), []
    model.model.embed_tokens.register_forward_pre_hook(lambda _, given: seen.append(int(given[0][0, 0])))
    grid = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
    scheme = QuantizationScheme(targets=["Linear"], weights=grid)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": [[1] * tokens] * rows})
    torch.manual_seed(seed)
    recipe = GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"])
    oneshot(model=model, processor=words, dataset=data, recipe=recipe, num_calibration_samples=8, **options)
    total = sum(float(p.double().abs().sum()) for n, p in model.named_parameters() if n.endswith("proj.weight"))
    return list(dict.fromkeys(seen)), round(total, 6)


one, other, again = quantized(1), quantized(2), quantized(1)
plain = [quantized(seed, shuffle_calibration_samples=False) for seed in (1, 2)]
print(llmcompressor.__version__, torch.__version__)
for name, (taken, total) in {"1": one, "2": other, "1 again": again, "not shuffled": plain[0]}.items():
    print(f"seed {name}: rows {taken}, weights {total}")
same = len(set(one[0]) & set(other[0]))
holds = one == again and one[1] != other[1] and same <= 4 and plain[0] == plain[1] and 0 not in plain[0][0]
sys.exit(not (holds and max(plain[0][0]) == rows - 1))
PY
