"""A grid as the tensors of a file format, and the tensors of a file format as a dense weight.

Three layouts, and one struct behind all of them: `methods.base.Grid`, weight = scale * (code - zero).

gptq            AutoGPTQ's: qweight [inputs * bits / 32, outputs] packed along inputs, scales [groups, outputs] in
                float16, qzeros [groups, outputs * bits / 32] holding zero - 1, g_idx [inputs]
pack-quantized  compressed-tensors': weight_packed [outputs, inputs * bits / 32], weight_scale [outputs, groups],
                weight_zero_point [outputs * bits / 32, groups] of asymmetric grids alone, weight_shape [2]
int-quantized   compressed-tensors': weight int8 [outputs, inputs] holding code - 128, weight_scale [outputs, 1]

Knows no plan, no config.json and no path; what it reads may come from other tools.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor

from hubplugin.checkpoint import encodings, packing
from hubplugin.checkpoint.encodings import Grid
from hubplugin.checkpoint.format_names import GPTQ, INT_QUANTIZED, PACK_QUANTIZED
from hubplugin.checkpoint.headers import Header
from hubplugin.errors import CheckpointError

# the tensor that holds the codes, and those that stand beside it, by the end of their names
CODES = ("qweight", "weight_packed")
BESIDE = ("qzeros", "scales", "g_idx", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
MIDDLE_OF_INT8 = 128


class Stored(Protocol):
    """Named tensors of a folder."""

    def get(self, name: str) -> Tensor: ...

    def __contains__(self, name: str) -> bool: ...


def tensors(encoding: Grid, layout: str, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    """One linear's tensors in a layout, by the end of their names.

    `scale_dtype` is that of compressed-tensors' scales, the model's own; AutoGPTQ's are always float16. Both hold the
    scales of a grid exactly.
    """
    if layout == GPTQ:
        return _gptq(encoding)
    if layout == PACK_QUANTIZED:
        return _pack_quantized(encoding, scale_dtype)
    if layout == INT_QUANTIZED:
        return _int_quantized(encoding, scale_dtype)
    raise ValueError(f"no layout is called {layout}")


def _gptq(encoding: Grid) -> dict[str, Tensor]:
    inputs = encoding.codes.shape[1]
    stored = (_zeros(encoding) - 1) & (2**encoding.bits - 1)  # a zero of 0 wraps, as AutoGPTQ's own arithmetic does
    return {
        "qweight": packing.pack(encoding.codes, encoding.bits).T.contiguous(),
        "qzeros": packing.pack(stored.T, encoding.bits),
        "scales": encoding.scales.to(torch.float16).T.contiguous(),
        "g_idx": (torch.arange(inputs) // encoding.group_size).to(torch.int32),
    }


def _pack_quantized(encoding: Grid, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    made = {
        "weight_packed": packing.pack(encoding.codes, encoding.bits),
        "weight_scale": encoding.scales.to(scale_dtype),
        "weight_shape": torch.tensor(encoding.codes.shape, dtype=torch.int64),
    }
    if encoding.zeros is not None:
        made["weight_zero_point"] = packing.pack(encoding.zeros.T, encoding.bits).T.contiguous()
    return made


def _int_quantized(encoding: Grid, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    if encoding.bits != 8 or encoding.zeros is not None or encoding.scales.shape[1] != 1:
        raise ValueError("int8 weights have 8 bits, no zeros, and one scale per output")
    signed = (encoding.codes.to(torch.int16) - MIDDLE_OF_INT8).to(torch.int8)
    return {"weight": signed, "weight_scale": encoding.scales.to(scale_dtype)}


def _zeros(encoding: Grid) -> Tensor:
    """uint8 [outputs, groups]."""
    if encoding.zeros is not None:
        return encoding.zeros
    return torch.full(encoding.scales.shape, 2 ** (encoding.bits - 1), dtype=torch.uint8)


def is_quantized(headers: Mapping[str, Header], linear: str) -> bool:
    """Whether a linear of a folder with these tensors is stored as codes."""
    plain = headers.get(f"{linear}.weight")
    return any(f"{linear}.{codes}" in headers for codes in CODES) or (plain is not None and plain.dtype == "I8")


def dense(stored: Stored, linear: str, bits: Collection[int], zero_shift: int) -> Tensor:
    """One quantized linear [outputs, inputs] in float32, from whatever layout it is stored in.

    `bits` are those that the folder's configuration names, `zero_shift` what AutoGPTQ's zeros are stored less by (1 in
    its first format, 0 in its second). Raises CheckpointError where the shapes fit none of them.
    """
    if f"{linear}.qweight" in stored:
        return _from_gptq(stored, linear, bits, zero_shift)
    if f"{linear}.weight_packed" in stored:
        return _from_pack_quantized(stored, linear, bits)
    return _from_int_quantized(stored, linear)


def int8_per_token(inputs: Tensor) -> Tensor:
    """Activations [..., inputs] as W8A8 kernels see them: each token on an int8 grid up to its largest value."""
    scale = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float16).tiny) / 127
    return (inputs / scale).round() * scale


def _from_gptq(stored: Stored, linear: str, bits: Collection[int], zero_shift: int) -> Tensor:
    words, zero_words = stored.get(f"{linear}.qweight"), stored.get(f"{linear}.qzeros")
    outputs = words.shape[1]
    width = _fitting(bits, lambda each: packing.word_count(outputs, each) == zero_words.shape[1], linear)
    codes = packing.unpack(words.T, width, words.shape[0] * packing.WORD // width)
    zeros = (packing.unpack(zero_words, width, outputs).int() + zero_shift) & (2**width - 1)
    return _spread(stored, f"{linear}.g_idx", codes, stored.get(f"{linear}.scales").T, zeros.T)


def _from_pack_quantized(stored: Stored, linear: str, bits: Collection[int]) -> Tensor:
    words, scales = stored.get(f"{linear}.weight_packed"), stored.get(f"{linear}.weight_scale")
    outputs, inputs = (int(size) for size in stored.get(f"{linear}.weight_shape"))
    whole = any(packing.word_count(inputs, each) == words.shape[1] for each in bits)
    unpack, count = (
        (packing.unpack, packing.word_count) if whole else (packing.unpack_padded, packing.word_count_padded)
    )
    width = _fitting(bits, lambda each: count(inputs, each) == words.shape[1], linear)
    zeros = torch.full_like(scales, 2 ** (width - 1))
    if f"{linear}.weight_zero_point" in stored:
        zeros = unpack(stored.get(f"{linear}.weight_zero_point").T, width, outputs).T
    return _spread(stored, f"{linear}.weight_g_idx", unpack(words, width, inputs), scales, zeros)


def _from_int_quantized(stored: Stored, linear: str) -> Tensor:
    codes, scales = stored.get(f"{linear}.weight"), stored.get(f"{linear}.weight_scale")
    zeros = torch.zeros_like(scales)
    if f"{linear}.weight_zero_point" in stored:
        zeros = stored.get(f"{linear}.weight_zero_point")
    return _spread(stored, f"{linear}.weight_g_idx", codes, scales, zeros)


def _fitting(bits: Collection[int], fits: Callable[[int], bool], linear: str) -> int:
    for each in sorted(bits):
        if fits(each):
            return each
    raise CheckpointError(linear, f"its words hold codes of none of these widths: {sorted(bits)}", "write it again")


def _spread(stored: Stored, group_index: str, codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """scale * (code - zero), each group's scale and zero [outputs, groups] given to all of its inputs.

    Where a tensor `group_index` says which group an input is in, it counts; otherwise groups are runs of equal length.
    """
    inputs, groups = codes.shape[1], scales.shape[1]
    group_of = torch.arange(inputs) * groups // inputs
    if group_index in stored:
        group_of = stored.get(group_index).long()
    return encodings.values(codes.float(), scales.float()[:, group_of], zeros.float()[:, group_of])
