"""Which loaders other than vLLM read a quantized checkpoint, with which packages: what was found by running them.

Run on pico models in November 2026 with transformers 5.19 to 5.24, compressed-tensors 0.17 to 0.20,
optimum 2.3, gptqmodel 7.6 and llama.cpp's converter. Knows schemes and the names of packages; imports none of them.
"""

from dataclasses import dataclass

from hubplugin.checkpoint.format_names import GPTQ, INT_QUANTIZED
from hubplugin.plan.schemes import Scheme, Stored

TRANSFORMERS, GPTQMODEL = "transformers", "gptqmodel"

GPTQMODEL_ALONE = (
    "GPTQModel.load and vLLM load it, transformers does not: {}, which transformers (with gptqmodel and optimum) does "
    "not read of AutoGPTQ's format"
)
ZEROS = (
    "transformers 5.23 and 5.24 cannot load its zero points with compressed-tensors 0.18 to 0.20 (they report "
    "mismatched sizes): transformers 5.22 and older can, and so can vLLM"
)
THREE_BITS = (
    "Codes of 3 bits need compressed-tensors 0.18 or newer in transformers (0.17 packed them otherwise), and "
    "llama.cpp's converter fails on them; vLLM reads them"
)


@dataclass(frozen=True)
class Loader:
    """A library that loads a checkpoint in Python, and what pip must install for it."""

    library: str  # TRANSFORMERS or GPTQMODEL
    requirements: tuple[str, ...]  # as pip takes them


def loader(stored: Stored) -> Loader | None:
    """What loads a checkpoint, apart from vLLM; None: nothing does."""
    if stored.needs_plugin:
        return None
    if not stored.quantized:
        return Loader(TRANSFORMERS, (TRANSFORMERS,))
    if stored.quantized[0].layout == GPTQ:
        if stored.beyond_transformers:
            return Loader(GPTQMODEL, (GPTQMODEL,))
        return Loader(TRANSFORMERS, (TRANSFORMERS, GPTQMODEL, "optimum"))
    newest = "<5.23" if any(map(has_zeros, stored.quantized)) else ""
    oldest = ">=0.18" if any(map(has_three_bits, stored.quantized)) else ""
    return Loader(TRANSFORMERS, (f"{TRANSFORMERS}{newest}", f"compressed-tensors{oldest}"))


def notes(stored: Stored) -> tuple[str, ...]:
    """What a user must know of loaders that fail on a checkpoint."""
    if stored.needs_plugin:
        return ()
    if stored.quantized and stored.quantized[0].layout == GPTQ:
        return (GPTQMODEL_ALONE.format(why),) if (why := stored.beyond_transformers) else ()
    zeros, three = any(map(has_zeros, stored.quantized)), any(map(has_three_bits, stored.quantized))
    return (ZEROS,) * zeros + (THREE_BITS,) * three


def has_zeros(scheme: Scheme) -> bool:
    """Whether zero points are stored and packed."""
    return not scheme.symmetric and scheme.layout != INT_QUANTIZED


def has_three_bits(scheme: Scheme) -> bool:
    """Whether codes lie across the ends of words."""
    return scheme.bits == 3
