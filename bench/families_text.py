"""What docs/families.md says apart from numbers: for a reader who is new to compression. Holds no result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEAD = """# Every family of compression at the same bytes

*Written by `python bench/families_page.py` from the files in `bench/results/families`; do not edit.
`python bench/families.py` makes what is not there yet, from `bench/families.yaml`.*

A language model is made smaller in a few ways that share no idea: store each weight in fewer bits (**quantization**),
let weights share a few values (**codebooks**), leave weights out (**pruning** of whole channels and heads, or **masks**
of single weights), or write a matrix as the product of two thin ones (**low rank**). What is left may then be trained
again. Papers compare within a family. Here all of them leave about the same number of bytes, from the same model, the
same calibration text and the same machine, and are measured on the same held-out text.

How to read the tables:

- **linears**: bytes of the blocks' matrices in bfloat16 over all that stands for them now (codes, scales, centroids,
  factors). It is the ratio in a variant's name. **file** counts the embedding too, which nobody here touches: of a
  small model it is a large part. **of float32** is the file against four bytes a weight, as some tables count.
- **perplexity ×**: how many times the base's perplexity. 1.00 is no loss; at 100 there is no language left.
- **mean KL**: how far the variant's predictions are from the base's, in nats per token, ± one standard error. It is the
  better measure: perplexity may stay where predictions changed. **top-1 same**: how often both think the same token
  most likely.
- **made in**: seconds from calibration tokens to the finished folder, searches and training included, evaluation not.
  Ratios of one family share what a search measures: its seconds count for each of them, though it is measured once.
- **served by**: what loads it, by the rules of `hubplugin plan`. Where no kernel computes with the stored form, bytes
  are saved on disk and on the way, not while it runs; *as dense weights*: hubplugin has vLLM make them of the codes.
"""
BEST = "By one step: quantized, shared, pruned or factored, and nothing else. Of all: combinations and training too.\n"
ZEROS = """Half of all weights are zero here, and the file is as large as the base's: vLLM stores and multiplies zeros
like other numbers, which saves neither bytes nor time. Where a mask is called 2x, that is of weights and not of bytes.
"""
BEYOND = "The least ratio at which a family's perplexity is more than a hundred times the base's.\n"
USUAL = """Introductions to model compression often have a table of how much smaller each technique makes a model. Such
numbers leave open what they are a ratio of (of float32 everything is twice as much as of bfloat16, in which models are
published), whether all of the model counts or what was compressed of it, and how much worse the model may become. Here
the ratio is that of the linears in bfloat16, and the loss stands beside it. Nothing was trained unless a row says so.
"""
SERVED = "The rules and notes of `hubplugin plan` for the variants above.\n"

# beside a method's own description, for those that explain themselves least
FURTHER: Mapping[str, str] = {
    "gptq": "Weights are rounded one column after another, and each rounding error is made up for by the columns that "
    "are still to come. With `budget`, measured losses decide how many bits each matrix gets.",
    "codebook": "A grid has evenly spaced values; a codebook's stand where the weights are.",
    "prune": "What is left is a smaller model of the same kind: every kernel and every format knows it.",
    "lowrank": "A square matrix has to lose half of its rank before two factors are smaller than it is.",
    "tune": "Codes are fixed, or may move by one; what is trained adds no byte.",
    "recover": "The smaller model learns to predict what the base predicts.",
    "distill": "With `answers` it sees no probabilities, and learns from what the base would say as text.",
    "eora": "The ratio counts the codes of its parent and the adapter, both of which are loaded.",
    "lora": "The ratio counts both here too.",
}


@dataclass(frozen=True)
class Claim:
    """A line of the usual table, and which variants it is about."""

    technique: str
    promise: str
    covers: Callable[[Sequence[Mapping[str, Any]]], bool]


def _only(*methods: str) -> Callable[[Sequence[Mapping[str, Any]]], bool]:
    return lambda steps: tuple(step["method"] for step in steps) == methods


def _gptq(eight: bool) -> Callable[[Sequence[Mapping[str, Any]]], bool]:
    return lambda steps: _only("gptq")(steps) and (steps[0].get("bits") == 8) == eight


def _free(steps: Sequence[Mapping[str, Any]]) -> bool:
    return _only("codebook")(steps) and steps[0].get("values") != "e2m1"


def _with(*methods: str) -> Callable[[Sequence[Mapping[str, Any]]], bool]:
    return lambda steps: any(step["method"] in methods for step in steps)


def _all(steps: Sequence[Mapping[str, Any]], *methods: str) -> bool:
    return set(methods) <= {step["method"] for step in steps}


CLAIMS = (
    Claim("quantization to 8 bits", "4x", _gptq(eight=True)),
    Claim("quantization below 8 bits", "8x at 4 bits", _gptq(eight=False)),
    Claim("quantization, then tuned", "-", _only("gptq", "tune")),
    Claim("structured pruning", "2x to 10x", _only("prune")),
    Claim("structured pruning, then trained", "2x to 10x", _only("prune", "recover")),
    Claim("distillation", "2x to 10x", _with("distill")),
    Claim("low rank", "2x to 5x", _only("lowrank")),
    Claim("weight sharing", "2x to 4x", _free),
    Claim("adapters (PEFT)", "listed, though the model keeps its bytes", _with("lora", "eora")),
    Claim("pruning and quantization together", "the product of both", lambda steps: _all(steps, "prune", "gptq")),
)
