"""The names of file formats for quantized and factored weights, as they stand in config.json, and of factors.

Knows names. Knows no torch, so that `plan` may use them.
"""

from typing import Protocol


class Names(Protocol):
    """What knows whether it has a tensor of a name: a dictionary of headers, a source of weights."""

    def __contains__(self, name: str, /) -> bool: ...


GPTQ = "gptq"  # AutoGPTQ's tensors
PACK_QUANTIZED = "pack-quantized"  # compressed-tensors': codes of any width in 32-bit words
INT_QUANTIZED = "int-quantized"  # compressed-tensors': int8 weights, for int8 activations
NVFP4 = "nvfp4-pack-quantized"  # compressed-tensors': FP4 numbers, two in a byte, with a float8 scale for 16 of them
COMPRESSED_TENSORS = "compressed-tensors"  # the format that knows the last three
CODEBOOK = "hubplugin_codebook"  # ours: codes of any width in 32-bit words, and the centroids they name

# ours, for which vLLM needs hubplugin's plugin (serve/low_rank.py): W = B A of [outputs, rank] and [rank, inputs]
LOW_RANK = "hubplugin_lowrank"
FACTOR_A, FACTOR_B = "lr_a", "lr_b"  # the last part of their names; of codes of a factor the part before PACKED's
PACKED = "weight_packed"  # the tensor of compressed-tensors' that holds packed codes, a row for each output
# linears that may share one A, which then has the name of their stack
STACKS = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
STACKS |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}

# PEFT's: W + scale * B A of [outputs, rank] and [rank, inputs]
LORA_A, LORA_B = "lora_A.weight", "lora_B.weight"


def lora(linear: str, part: str) -> str:
    """The name of a linear's LORA_A or LORA_B in an adapter's file."""
    return f"base_model.model.{linear}.{part}"


def is_factor(name: str) -> bool:
    """Whether a tensor of this name is a factor, or belongs to the codes of one."""
    module, _, part = name.rpartition(".")
    return bool({part, module.rpartition(".")[2]} & {FACTOR_A, FACTOR_B})


def is_factored(names: Names, linear: str) -> bool:
    """Whether a linear of a folder with tensors of these names is stored as two factors."""
    return f"{linear}.{FACTOR_B}" in names or f"{linear}.{FACTOR_B}.{PACKED}" in names


def factor_a(linear: str, shared: bool) -> str:
    """The full name of a linear's factor A: its own, or that of its stack."""
    parent, _, short = linear.rpartition(".")
    return f"{parent}.{STACKS[short]}.{FACTOR_A}" if shared else f"{linear}.{FACTOR_A}"


def stored_factor_a(names: Names, linear: str) -> str:
    """The full name of a linear's factor A in a folder with tensors of these names."""
    own = factor_a(linear, shared=False)
    stacked = linear.rpartition(".")[2] in STACKS and own not in names and f"{own}.{PACKED}" not in names
    return factor_a(linear, shared=stacked)
