"""The words of docs/bench.md: what engines and models are called, what is measured, how rivals were set up.

Knows no result.
"""

from cells import ENGINES, SIZES

NAMES = {
    "ours": "hubplugin",
    "ours-fast": "hubplugin, qep: false",
    "ours-plain": "hubplugin, plain",
    "ours-fisher": "hubplugin, fisher_tokens",
    "ours-tuned": "hubplugin, tuned",
    "ours-rounded": "hubplugin, tuned with rounding",
    "gptqmodel": "gptqmodel",
    "gptqmodel-mse": "gptqmodel, mse",
    "llmcompressor": "llm-compressor",
    "llmcompressor-mse": "llm-compressor, mse",
    "autoround": "AutoRound",
    "autoround-light": "AutoRound, light",
    "onecomp": "OneComp",
    "onecomp-mse": "OneComp, mse",
}
OURS = ("ours", "ours-fast", "ours-plain", "ours-fisher", "ours-tuned", "ours-rounded")
SHAPES = {
    "smollm2-moved": "SmolLM2-135M-Instruct, moved off the 4-bit grid on which its weights were published",
    "smollm2": "SmolLM2-135M-Instruct, its weights on the 4-bit grid on which they were published",
    "docs": "docs: the trained 12M model that ships with hubplugin",
    "75m": "75m: random weights, hidden 768, FFN 2048, 12 layers, 12 heads, 4 KV heads",
    "350m": "350m: random weights, hidden 1024, FFN 3584, 24 layers, 16 heads, 8 KV heads",
}
HEAD = """# The benchmark

*Written by `python bench/page.py` from the files in `bench/results`; do not edit. `make bench` runs everything that is
not there yet; `make bench MODELS=docs TOKENS=8192 FORCE=1` runs one cell again.*

Every engine gets the same base folder, the same calibration token ids (sequences of 512), the same bits and groups,
symmetric, and writes a folder in its own format. Runs take turns, one process each; an uncounted run on a tiny model
comes before an engine's first. **wall** is from the base's folder to the written folder,
imports apart; **process** is everything, imports included; **CPU** is user and system time of what *wall* covers;
**peak** is the resident memory of the process with its children, imports included. Quality is measured by hubplugin's
own evaluation for all, on the folders: dequantized, in float32, on held-out tokens. Values are medians; smallest and
largest stand in brackets where there is more than one. Ratios are to hubplugin: above 1, the rival needs more.
"""
NOTES = """## How the rivals were set up

Each has a Python environment of its own, made by `python bench/environments.py` as `bench/lock` pins it, all on the
same version of torch. They run with their own defaults unless said here, and with the threads they give themselves.

- **gptqmodel** declares torch >= 2.14.1; it was installed beside the torch of the others all the same, where it runs
  without complaint, so that all engines compute with the same libraries. With two cores or fewer, 7.7.0 gives its
  thread pool one worker where its loader asks for two and ends with a `ValueError`; its own variable
  `GPTQMODEL_CPU_WORKERS=2` cures that. It says itself that on an ordinary Python (with the GIL) it packs with one core.
- **llm-compressor** runs as installed.
- **AutoRound** runs as installed, with the packages of its own `cpu` extra. It is no GPTQ: it tunes rounding by signed
  gradients, 200 steps per block by default and 50 in its light recipe, whatever the number of tokens. It writes while
  it tunes, so its *save* stage is part of *quantize*.
- **OneComp** (Fujitsu's, by the authors of QEP) asks for Python 3.12; its code runs on 3.11, where pip was told to
  ignore that. GPTQ with its QEP (half of the correction, none for down_proj) is its default at given bits. It computes
  in float16 by default; it was asked for bfloat16, which is the base's, and faster on a CPU.
- **hubplugin, plain**: `qep`, `clip_search` and `signed_scales` off. It is what the rivals do by default: GPTQ in the
  order of activations, the scales of each group from its extremes. Same work, so the row to compare seconds with.
- **hubplugin, fisher_tokens**: the defaults and `fisher_tokens: 4096`, which feeds errors from output to output.
- **hubplugin, tuned**: the defaults, and then `method: tune` on the same ids, one sequence in eight of which is held
  out; *with rounding*: `rounding: true`.
- **mse**: gptqmodel with `mse=2.4`, llm-compressor with the observer `memoryless_mse`, OneComp with `mse` and
  `actorder`. By default none of them searches for scales, and hubplugin does; these rows show what the search is worth.
"""
LINEAR = """Median wall seconds, and the straight line through them. Default settings bend at 32,768 tokens: of more,
every n-th batch passes through the base (`qep_tokens`).
"""

assert set(NAMES) == set(ENGINES) and set(SHAPES) <= set(SIZES)
