"""Codes or factors as the tensors of a file format, and the tensors of a file format as a dense weight.

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

One of factors, ours: `encodings.LowRank`, lr_b [outputs, rank] of each linear and lr_a [rank, inputs], which stands
under the name of a stack where its linears share it. Codes of factors, `encodings.CodedFactors`, are pack-quantized
tensors under these names.

Knows tensors, also those that other tools wrote. Knows no plan, no config.json and no path.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hubplugin.checkpoint import encodings, packing
from hubplugin.checkpoint.encodings import Codebook, Coded, Fp4, Grid
from hubplugin.checkpoint.format_names import (
    CODEBOOK,
    FACTOR_B,
    GPTQ,
    INT_QUANTIZED,
    NVFP4,
    PACK_QUANTIZED,
    PACKED,
    is_factored,
    stored_factor_a,
)
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


def factors(source: WeightSource, linear: str, bits: Collection[int] = ()) -> encodings.LowRank:
    """The factors of a linear, as stored, or in float32 where they are codes of one of these widths. Raises
    CheckpointError where A is missing or does not fit B."""
    b, a = (
        dense(source, name, bits, 0) if f"{name}.{PACKED}" in source else source.get(name)
        for name in (f"{linear}.{FACTOR_B}", stored_factor_a(source, linear))
    )
    if a.dim() != 2 or b.dim() != 2 or b.shape[1] != a.shape[0]:
        what = f"factors of {list(b.shape)} and {list(a.shape)} have no product"
        raise CheckpointError(linear, what, "write it again")
    return encodings.LowRank(b, a)


def layout(headers: Mapping[str, Header], linear: str) -> str:
    """The file format of a quantized linear, by the names of its tensors."""
    if f"{linear}.qweight" in headers:
        return GPTQ
    return PACK_QUANTIZED if f"{linear}.weight_packed" in headers else INT_QUANTIZED


def dense(source: WeightSource, linear: str, bits: Collection[int], zero_offset: int) -> Tensor:
    """One quantized or factored linear [outputs, inputs] in float32, from whichever format it is stored in.

    `bits` are those that the folder's configuration names, `zero_offset` is what AutoGPTQ's files hold zeros less by (1
    in its first format, 0 in its second). Raises CheckpointError where the shapes fit none of them.
    """
    if is_factored(source, linear):
        return factors(source, linear, bits).dense()
    if f"{linear}.codebook_codes" in source:
        return _from_codebook(source, linear)
    if _is_nvfp4(source, linear):
        return _from_nvfp4(source, linear)
    stored = _stored(source, linear, bits, zero_offset)
    group_of, (inputs, groups) = _group_of(source, stored), (stored.codes.shape[1], stored.scales.shape[1])
    scales, zeros = stored.scales.float(), stored.zeros.float()
    if inputs % groups == 0 and torch.equal(group_of, _runs(inputs, groups)):
        return encodings.expanded(stored.codes, scales, zeros)
    return encodings.values(stored.codes.float(), scales[:, group_of], zeros[:, group_of])


def grid(source: WeightSource, linear: str, bits: Collection[int], zero_offset: int) -> Grid:
    """One quantized linear as the grid that it lies on, from whichever format it is stored in; else as `dense`.

    Raises CheckpointError where inputs of a group are no neighbours: no grid of ours has them so.
    """
    stored = _stored(source, linear, bits, zero_offset)
    inputs, groups = stored.codes.shape[1], stored.scales.shape[1]
    if not torch.equal(_group_of(source, stored), _runs(inputs, groups)):
        raise CheckpointError(linear, "its groups are not runs of inputs (desc_act)", "quantize it here")
    codes, zeros = stored.codes, stored.zeros
    if codes.dtype == torch.int8:
        codes, zeros = (codes.to(torch.int16) + INT8_OFFSET).to(torch.uint8), zeros.float() + INT8_OFFSET
    symmetric = bool((zeros == 2 ** (stored.bits - 1)).all())
    scales = stored.scales.to(torch.float16).contiguous()
    return Grid(codes, scales, stored.bits, inputs // groups, None if symmetric else zeros.to(torch.uint8))


def int8_per_token(inputs: Tensor) -> Tensor:
    """Activations [..., inputs] as W8A8 kernels see them: each token on an int8 grid up to its largest value."""
    scale = inputs.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float16).tiny) / 127
    return (inputs / scale).round() * scale


@dataclass(frozen=True)
class _Stored:
    """A quantized linear as its tensors have it."""

    codes: Tensor  # uint8 or int8 [outputs, inputs]
    scales: Tensor  # [outputs, groups]
    zeros: Tensor  # [outputs, groups]
    bits: int
    group_index: str  # the tensor that says which group an input is in, where there is one


def _stored(source: WeightSource, linear: str, bits: Collection[int], zero_offset: int) -> _Stored:
    if f"{linear}.qweight" in source:
        return _from_gptq(source, linear, bits, zero_offset)
    if f"{linear}.weight_packed" in source:
        return _from_pack_quantized(source, linear, bits)
    return _from_int_quantized(source, linear)


def _from_gptq(source: WeightSource, linear: str, bits: Collection[int], zero_offset: int) -> _Stored:
    words, zero_words = source.get(f"{linear}.qweight"), source.get(f"{linear}.qzeros")
    outputs = words.shape[1]
    width = _matching_bits(bits, lambda width: packing.word_count(outputs, width) == zero_words.shape[1], linear)
    codes = packing.unpack(words.T, width, words.shape[0] * packing.WORD // width)
    zeros = (packing.unpack(zero_words, width, outputs).int() + zero_offset) & (2**width - 1)
    return _Stored(codes, source.get(f"{linear}.scales").T, zeros.T, width, f"{linear}.g_idx")


def _from_codebook(source: WeightSource, linear: str) -> Tensor:
    words, centroids = source.get(f"{linear}.codebook_codes"), source.get(f"{linear}.codebook_centroids")
    inputs = int(source.get(f"{linear}.codebook_shape")[1])
    width = centroids.shape[2].bit_length() - 1
    if packing.word_count(inputs, width) != words.shape[1]:
        raise CheckpointError(linear, f"its words do not hold {inputs} codes of {width} bits", "write it again")
    return encodings.looked_up(packing.unpack(words, width, inputs), centroids)


def _is_nvfp4(source: WeightSource, linear: str) -> bool:
    return f"{linear}.weight_global_scale" in source


def _from_nvfp4(source: WeightSource, linear: str) -> Tensor:
    words = source.get(f"{linear}.weight_packed")
    codes = torch.stack((words & 15, words >> 4), dim=2).view(len(words), -1)
    scales, divisor = source.get(f"{linear}.weight_scale"), source.get(f"{linear}.weight_global_scale")
    return encodings.fp4_values(codes, scales, divisor.float())


def _from_pack_quantized(source: WeightSource, linear: str, bits: Collection[int]) -> _Stored:
    words, scales = source.get(f"{linear}.weight_packed"), source.get(f"{linear}.weight_scale")
    outputs, inputs = (int(size) for size in source.get(f"{linear}.weight_shape"))
    dense_words = any(packing.word_count(inputs, width) == words.shape[1] for width in bits)
    unpack, count = (
        (packing.unpack, packing.word_count) if dense_words else (packing.unpack_padded, packing.word_count_padded)
    )
    width = _matching_bits(bits, lambda width: count(inputs, width) == words.shape[1], linear)
    zeros = torch.full_like(scales, 2 ** (width - 1))
    if f"{linear}.weight_zero_point" in source:
        zeros = unpack(source.get(f"{linear}.weight_zero_point").T, width, outputs).T
    return _Stored(unpack(words, width, inputs), scales, zeros, width, f"{linear}.weight_g_idx")


def _from_int_quantized(source: WeightSource, linear: str) -> _Stored:
    codes, scales = source.get(f"{linear}.weight"), source.get(f"{linear}.weight_scale")
    zeros = torch.zeros_like(scales)
    if f"{linear}.weight_zero_point" in source:
        zeros = source.get(f"{linear}.weight_zero_point")
    return _Stored(codes, scales, zeros, 8, f"{linear}.weight_g_idx")


def _matching_bits(bits: Collection[int], matches: Callable[[int], bool], linear: str) -> int:
    """The width of the codes: the first that the shape of the words agrees with."""
    for width in sorted(bits):
        if matches(width):
            return width
    raise CheckpointError(linear, f"its words hold codes of none of these widths: {sorted(bits)}", "write it again")


def _group_of(source: WeightSource, stored: _Stored) -> Tensor:
    """The group of each input [inputs]: as a tensor says, else runs of equal length."""
    if stored.group_index in source:
        return source.get(stored.group_index).long()
    return _runs(stored.codes.shape[1], stored.scales.shape[1])


def _runs(inputs: int, groups: int) -> Tensor:
    """The group of each input where groups are runs of neighbours."""
    return torch.arange(inputs) * groups // inputs
