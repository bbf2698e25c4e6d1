"""Codes as the tensors of a file format, and the tensors of a file format as a dense weight.

Three formats of one struct, `encodings.Grid`, weight = scale * (code - zero):

gptq            AutoGPTQ's: qweight [inputs * bits / 32, outputs] packed along inputs, scales [groups, outputs] in
                float16, qzeros [groups, outputs * bits / 32] holding zero - 1, g_idx [inputs]
pack-quantized  compressed-tensors': weight_packed [outputs, inputs * bits / 32], weight_scale [outputs, groups],
                weight_zero_point [outputs * bits / 32, groups] of asymmetric grids alone, weight_shape [2]
int-quantized   compressed-tensors': weight int8 [outputs, inputs] holding code - 128, weight_scale [outputs, 1]

And one of each kind of codebook:

nvfp4-pack-quantized  compressed-tensors': weight_packed uint8 [outputs, inputs / 2], the earlier input in the low bits,
                      weight_scale float8 [outputs, inputs / 16], weight_global_scale float32 [1], which divides it
hubplugin_codebook    ours: codebook_codes [outputs, ceil(inputs * bits / 32)] packed along inputs, codebook_centroids
                      float16 [outputs, groups, 2^bits], codebook_shape [2]

Knows tensors, also those that other tools wrote. Knows no plan, no config.json and no path.
"""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from hubplugin.checkpoint import encodings, packing
from hubplugin.checkpoint.encodings import Codebook, Coded, Fp4, Grid
from hubplugin.checkpoint.format_names import CODEBOOK, GPTQ, INT_QUANTIZED, NVFP4, PACK_QUANTIZED
from hubplugin.checkpoint.headers import Header
from hubplugin.checkpoint.weight_source import WeightSource
from hubplugin.errors import CheckpointError

# the tensor that holds the codes, and those that it is dequantized with, by the last part of their names
CODES = ("qweight", "weight_packed", "codebook_codes")
PARAMETERS = (
    *("qzeros", "scales", "g_idx", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    *("weight_global_scale", "codebook_centroids", "codebook_shape"),
)
INT8_OFFSET = 128  # of int8 weights from codes 0 .. 255


def tensors(encoding: Coded, file_format: str, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    """One linear's tensors in a file format, by the last part of their names.

    `scale_dtype` is that of compressed-tensors' scales, the model's own; AutoGPTQ's are always float16. Both hold the
    scales of a grid exactly. Raises ValueError for codes that the format cannot hold.
    """
    if isinstance(encoding, Codebook) and file_format == CODEBOOK:
        return _codebook(encoding)
    if isinstance(encoding, Fp4) and file_format == NVFP4:
        return _nvfp4(encoding)
    if not isinstance(encoding, Grid):
        raise ValueError(f"{file_format} holds no {type(encoding).__name__}")
    if file_format == GPTQ:
        return _gptq(encoding)
    if file_format == PACK_QUANTIZED:
        return _pack_quantized(encoding, scale_dtype)
    if file_format == INT_QUANTIZED:
        return _int_quantized(encoding, scale_dtype)
    raise ValueError(f"no file format is called {file_format}")


def _gptq(encoding: Grid) -> dict[str, Tensor]:
    inputs = encoding.codes.shape[1]
    zeros = (_zeros(encoding) - 1) & (2**encoding.bits - 1)  # a zero of 0 wraps, as AutoGPTQ's own arithmetic does
    return {
        "qweight": packing.pack(encoding.codes, encoding.bits).T.contiguous(),
        "qzeros": packing.pack(zeros.T, encoding.bits),
        "scales": encoding.scales.to(torch.float16).T.contiguous(),
        "g_idx": (torch.arange(inputs) // encoding.group_size).to(torch.int32),
    }


def _pack_quantized(encoding: Grid, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    parts = {
        "weight_packed": packing.pack(encoding.codes, encoding.bits),
        "weight_scale": encoding.scales.to(scale_dtype),
        "weight_shape": torch.tensor(encoding.codes.shape, dtype=torch.int64),
    }
    if encoding.zeros is not None:
        parts["weight_zero_point"] = packing.pack(encoding.zeros.T, encoding.bits).T.contiguous()
    return parts


def _int_quantized(encoding: Grid, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    if encoding.bits != 8 or encoding.zeros is not None or encoding.scales.shape[1] != 1:
        raise ValueError("int8 weights have 8 bits, no zeros, and one scale per output")
    signed = (encoding.codes.to(torch.int16) - INT8_OFFSET).to(torch.int8)
    return {"weight": signed, "weight_scale": encoding.scales.to(scale_dtype)}


def _nvfp4(encoding: Fp4) -> dict[str, Tensor]:
    return {
        "weight_packed": encoding.codes[:, ::2] | (encoding.codes[:, 1::2] << 4),
        "weight_scale": encoding.scales,
        "weight_global_scale": torch.tensor([encoding.divisor], dtype=torch.float32),
    }


def _codebook(encoding: Codebook) -> dict[str, Tensor]:
    return {
        "codebook_codes": packing.pack(encoding.codes, encoding.bits),
        "codebook_centroids": encoding.centroids,
        "codebook_shape": torch.tensor(encoding.codes.shape, dtype=torch.int64),
    }


def _zeros(encoding: Grid) -> Tensor:
    """uint8 [outputs, groups]."""
    if encoding.zeros is not None:
        return encoding.zeros
    return torch.full(encoding.scales.shape, 2 ** (encoding.bits - 1), dtype=torch.uint8)


def is_quantized(headers: Mapping[str, Header], linear: str) -> bool:
    """Whether a linear of a folder with these tensors is stored as codes."""
    weight = headers.get(f"{linear}.weight")
    return any(f"{linear}.{codes}" in headers for codes in CODES) or (weight is not None and weight.dtype == "I8")


def dense(source: WeightSource, linear: str, bits: Collection[int], zero_offset: int) -> Tensor:
    """One quantized linear [outputs, inputs] in float32, from whichever format it is stored in.

    `bits` are those that the folder's configuration names, `zero_offset` is what AutoGPTQ's files hold zeros less by (1
    in its first format, 0 in its second). Raises CheckpointError where the shapes fit none of them.
    """
    if f"{linear}.qweight" in source:
        return _from_gptq(source, linear, bits, zero_offset)
    if f"{linear}.codebook_codes" in source:
        return _from_codebook(source, linear)
    if f"{linear}.weight_packed" in source:
        words = source.get(f"{linear}.weight_packed")
        if words.dtype == torch.uint8:
            return _from_nvfp4(source, linear, words)
        return _from_pack_quantized(source, linear, words, bits)
    return _from_int_quantized(source, linear)


def int8_per_token(inputs: Tensor) -> Tensor:
    """Activations [..., inputs] as W8A8 kernels see them: each token on an int8 grid up to its largest value."""
    scale = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float16).tiny) / 127
    return (inputs / scale).round() * scale


def _from_gptq(source: WeightSource, linear: str, bits: Collection[int], zero_offset: int) -> Tensor:
    words, zero_words = source.get(f"{linear}.qweight"), source.get(f"{linear}.qzeros")
    outputs = words.shape[1]
    width = _matching_bits(bits, lambda width: packing.word_count(outputs, width) == zero_words.shape[1], linear)
    codes = packing.unpack(words.T, width, words.shape[0] * packing.WORD // width)
    zeros = (packing.unpack(zero_words, width, outputs).int() + zero_offset) & (2**width - 1)
    return _dequantized(source, f"{linear}.g_idx", codes, source.get(f"{linear}.scales").T, zeros.T)


def _from_codebook(source: WeightSource, linear: str) -> Tensor:
    words, centroids = source.get(f"{linear}.codebook_codes"), source.get(f"{linear}.codebook_centroids")
    inputs = int(source.get(f"{linear}.codebook_shape")[1])
    width = centroids.shape[2].bit_length() - 1
    if packing.word_count(inputs, width) != words.shape[1]:
        raise CheckpointError(linear, f"its words do not hold {inputs} codes of {width} bits", "write it again")
    return encodings.looked_up(packing.unpack(words, width, inputs), centroids)


def _from_nvfp4(source: WeightSource, linear: str, words: Tensor) -> Tensor:
    codes = torch.stack((words & 15, words >> 4), dim=2).view(len(words), -1)
    scales, divisor = source.get(f"{linear}.weight_scale"), source.get(f"{linear}.weight_global_scale")
    return encodings.fp4_values(codes, scales, divisor.float())


def _from_pack_quantized(source: WeightSource, linear: str, words: Tensor, bits: Collection[int]) -> Tensor:
    scales = source.get(f"{linear}.weight_scale")
    outputs, inputs = (int(size) for size in source.get(f"{linear}.weight_shape"))
    dense_words = any(packing.word_count(inputs, width) == words.shape[1] for width in bits)
    unpack, count = (
        (packing.unpack, packing.word_count) if dense_words else (packing.unpack_padded, packing.word_count_padded)
    )
    width = _matching_bits(bits, lambda width: count(inputs, width) == words.shape[1], linear)
    zeros = torch.full_like(scales, 2 ** (width - 1))
    if f"{linear}.weight_zero_point" in source:
        zeros = unpack(source.get(f"{linear}.weight_zero_point").T, width, outputs).T
    return _dequantized(source, f"{linear}.weight_g_idx", unpack(words, width, inputs), scales, zeros)


def _from_int_quantized(source: WeightSource, linear: str) -> Tensor:
    codes, scales = source.get(f"{linear}.weight"), source.get(f"{linear}.weight_scale")
    zeros = torch.zeros_like(scales)
    if f"{linear}.weight_zero_point" in source:
        zeros = source.get(f"{linear}.weight_zero_point")
    return _dequantized(source, f"{linear}.weight_g_idx", codes, scales, zeros)


def _matching_bits(bits: Collection[int], matches: Callable[[int], bool], linear: str) -> int:
    """The width of the codes: the first that the shape of the words agrees with."""
    for width in sorted(bits):
        if matches(width):
            return width
    raise CheckpointError(linear, f"its words hold codes of none of these widths: {sorted(bits)}", "write it again")


def _dequantized(source: WeightSource, group_index: str, codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """scale * (code - zero), each group's scale and zero [outputs, groups] given to all of its inputs.

    Where a tensor `group_index` says which group an input is in, it counts; otherwise groups are runs of equal length.
    """
    inputs, groups = codes.shape[1], scales.shape[1]
    group_of = torch.arange(inputs) * groups // inputs
    if group_index in source:
        group_of = source.get(group_index).long()
    return encodings.values(codes.float(), scales.float()[:, group_of], zeros.float()[:, group_of])
