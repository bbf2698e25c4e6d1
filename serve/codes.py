"""What config.json says of a model's codes: whether vLLM computes with them on this CPU, or dense weights made of them.

vLLM 0.32's CPU build has kernels for packed 4-bit codes on AVX-512, for int8 with rounded activations on VNNI, and for
experts' codes on AMX. Of all other codes, and of these on other processors, dense weights are made while an engine
loads (`dense_loader`), and so they are of a small model whose codes a kernel would take: to unpack codes in every step
takes longer than to read dense weights (docs/serving.md). Knows processors and config.json; starts nothing.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from serve import cpu_features

LOW_RANK = "hubplugin_lowrank"  # config.json's word for linears that are two factors, in floats or in codes
CODEBOOK = "hubplugin_codebook"  # its word for codebooks, which are dense weights once they are loaded
READ = ("gptq", "compressed-tensors", LOW_RANK)  # its words for what `dense_loader` reads
LOAD_FORMAT = "hubplugin_dense"  # vLLM's --load-format for dense weights that are made of codes
DENSE = ("--load-format", LOAD_FORMAT, "--hf-overrides", json.dumps({"quantization_config": None}))
KEPT = ("--load-format", "auto")
USERS = ("--load-format", "--hf-overrides", "--quantization", "-q")  # whoever gives one of these decides
WIDTHS = range(1, 9)  # bits of a code
PACKED = 4, "int"  # the codes that vLLM's CPU kernels unpack
SMALL = 10**9  # weights in the blocks' linears: as many as were measured


def of(config: dict[str, Any]) -> dict[str, Any] | None:
    """The codes that vLLM is asked to compute with; None where there are none."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict) or quantization.get("quant_method") == CODEBOOK:
        return None
    return quantization.get("codes") if quantization.get("quant_method") == LOW_RANK else quantization


def _quantization(config: dict[str, Any]) -> dict[str, Any]:
    """config.json's own word on it; empty where it has none."""
    said = config.get("quantization_config")
    return said if isinstance(said, dict) else {}


def kept(config: dict[str, Any]) -> bool:
    """Whether a model has codes that vLLM computes with on this CPU, as hubplugin starts it."""
    return of(config) is not None and not made_dense(config)


def made_dense(config: dict[str, Any]) -> bool:
    """Whether dense weights are made of a model's codes on this CPU."""
    codes, method = of(config), _quantization(config).get("quant_method")
    weights = list(_weights(codes)) if codes and method in READ else []
    if not weights or not all(_is_read(*each) for each in weights):
        return False
    return not has_kernel(config) or (method != LOW_RANK and _is_small(config))


def has_kernel(config: dict[str, Any]) -> bool:
    """Whether vLLM computes with a model's codes on this CPU. False where there are none."""
    codes = of(config)
    if codes is None or cpu_features.missing(needed_features(config)):
        return False
    return all(
        rounded or (weights.get("num_bits"), weights.get("type", "int")) == PACKED
        for weights, rounded in _weights(codes)
    )


def unpacked_bits(config: dict[str, Any]) -> int | None:
    """The width of codes that are dense weights once an engine has loaded them here, the narrowest of several; None
    where there are none."""
    quantization = _quantization(config)
    if quantization.get("quant_method") == CODEBOOK:
        bits = quantization.get("bits")
        return bits if bits in WIDTHS else None
    codes = of(config)
    widths = [weights["num_bits"] for weights, _ in _weights(codes)] if codes and made_dense(config) else []
    return min(widths, default=None)


def options(config: dict[str, Any], given: Sequence[str]) -> tuple[str, ...]:
    """vLLM's options that have dense weights made of codes; none where a user's own say how weights are loaded."""
    if any(word.partition("=")[0] in USERS for word in given):
        return ()
    return DENSE if made_dense(config) else ()


def needed_features(config: dict[str, Any]) -> tuple[str, ...]:
    """The CPU features that vLLM's kernels for a model's codes need."""
    codes = of(config)
    if codes is None:
        return ()
    int8 = any(rounded for _, rounded in _weights(codes))
    packed = any(weights.get("num_bits") == PACKED[0] for weights, rounded in _weights(codes) if not rounded)
    if _experts(config) and (packed or int8):
        return (cpu_features.AMX,)
    return (cpu_features.AVX512,) * packed + (cpu_features.VNNI,) * int8


def _weights(codes: dict[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """How weights are coded, in compressed-tensors' words, and whether activations are rounded with them."""
    if "bits" in codes:  # AutoGPTQ's
        dynamic = codes.get("dynamic")
        for rule in (codes, *(dynamic.values() if isinstance(dynamic, dict) else ())):
            if isinstance(rule, dict) and "bits" in rule:
                yield {"num_bits": rule["bits"]}, False
    for group in (codes.get("config_groups") or {}).values():
        if isinstance(group, dict):
            yield group.get("weights") or {}, bool(group.get("input_activations"))


def _is_read(weights: dict[str, Any], rounded: bool) -> bool:
    """Whether dense weights can be made: of whole numbers, and of FP4 in groups of 16 (NVFP4). With activations that
    are not rounded a model would be another one than was measured."""
    if rounded or weights.get("num_bits") not in WIDTHS:
        return False
    return weights.get("type", "int") == "int" or (weights["num_bits"], weights.get("group_size")) == (4, 16)


def _experts(config: dict[str, Any]) -> bool:
    return any(config.get(key) for key in ("num_experts", "num_local_experts"))


def _is_small(config: dict[str, Any]) -> bool:
    """Whether dense weights are known to be faster, and little memory. With AMX neither was measured."""
    return not cpu_features.has(cpu_features.AMX) and _linears(config) <= SMALL


def _linears(config: dict[str, Any]) -> float:
    """Weights of the blocks' linears; infinite where config.json does not say their sizes as a Llama's does."""
    try:
        hidden, heads, layers = (
            int(config[key]) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
        )
        width = int(config.get("head_dim") or hidden // heads)
        attention = 2 * (heads + int(config.get("num_key_value_heads") or heads)) * width * hidden
        return layers * (attention + 3 * hidden * int(config["intermediate_size"]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return float("inf")
