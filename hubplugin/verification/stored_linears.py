"""What the tensors of a folder say of its linears: format, shape, width of codes, groups. Asks no configuration.

Knows AutoGPTQ's, compressed-tensors' and our own tensors (checkpoint/formats.py). Knows no family and no claim.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hubplugin.checkpoint import formats, packing
from hubplugin.checkpoint.encodings import FP4_GROUP
from hubplugin.checkpoint.format_names import (
    CODEBOOK,
    FACTOR_A,
    FACTOR_B,
    GPTQ,
    INT_QUANTIZED,
    LOW_RANK,
    NVFP4,
    PACK_QUANTIZED,
    PACKED,
    is_factor,
    is_factored,
    stored_factor_a,
)
from hubplugin.checkpoint.headers import BYTES, FLOATS, Header
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import CheckpointError, FormatError
from hubplugin.plan.schemes import LinearPlan

IN_NVFP4 = ("U8", "F8_E4M3")  # dtypes that no other format known here has
WIDTHS = range(2, 9)  # bits of a code that any tool writes


@dataclass(frozen=True)
class StoredLinear:
    """One linear, as its tensors have it."""

    name: str  # full module path
    # one of GPTQ, PACK_QUANTIZED, INT_QUANTIZED, NVFP4, CODEBOOK, LOW_RANK; empty: dense. Of codes of factors it is
    # PACK_QUANTIZED, and bits and groups are those of A, which B's fit
    layout: str
    outputs: int
    inputs: int
    bits: tuple[int, ...]  # widths that its words fit, the likeliest first; of a dense one, those of its dtype
    groups: int  # scales or codebooks of an output; 0: dense
    zeros: bool  # whether zero points are stored, as AutoGPTQ's format always does
    scale_dtype: str = ""
    rank: int = 0  # of factors; 0: it has none

    @property
    def codes(self) -> bool:
        """Whether it is stored as codes."""
        return self.layout not in ("", LOW_RANK)

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return -(-self.inputs // self.groups) if self.groups else 0

    def has_groups_of(self, size: int) -> bool:
        """Whether its scales are those of groups of `size` inputs; -1: of whole rows."""
        return self.groups == (1 if size <= 0 else -(-self.inputs // size))

    @property
    def plan(self) -> LinearPlan:
        """As `plan.sizes` weighs linears: by name and shape."""
        shape = (self.outputs, self.inputs)
        return LinearPlan(self.name, input_group="", before=shape, after=shape, scheme=None)

    def __str__(self) -> str:
        if not self.codes:
            return f"rank {self.rank}" if self.rank else f"dense, {self.bits[0]} bits"
        group = "a row" if self.groups == 1 else f"{self.group_size} inputs"
        shared = "codebook" if self.layout == CODEBOOK else "scale"
        return f"{' or '.join(map(str, self.bits))} bits, a {shared} for {group}"


def quantized(reader: Reader) -> Iterator[str]:
    """Module paths of all linears that are stored as codes."""
    for name, header in reader.headers.items():
        module, _, part = name.rpartition(".")
        if (part in formats.CODES or (part == "weight" and header.dtype == "I8")) and not module.endswith(FACTOR_A):
            yield module.removesuffix(f".{FACTOR_B}")


def read(reader: Reader, name: str) -> StoredLinear:
    """A linear of a folder.

    Raises FormatError for a format that is not known here, and CheckpointError where tensors do not fit a known one.
    """
    headers = reader.headers
    if f"{name}.qweight" in headers:
        return _gptq(headers, name)
    if f"{name}.codebook_codes" in headers:
        return _codebook(reader, name)
    if f"{name}.weight_packed" in headers:
        return _nvfp4(headers, name) if headers[f"{name}.weight_packed"].dtype == "U8" else _packed(reader, name)
    if f"{name}.{FACTOR_B}.{PACKED}" in headers:
        return _coded_factors(reader, name)
    if is_factored(headers, name):
        return _factored(headers, name)
    weight = _header(headers, f"{name}.weight")
    if weight.dtype == "I8":
        scale = _header(headers, f"{name}.weight_scale")
        groups = scale.shape[1] if len(scale.shape) == 2 else 1
        zeros = f"{name}.weight_zero_point" in headers
        return StoredLinear(name, INT_QUANTIZED, *_matrix(weight, name), (8,), groups, zeros, scale.dtype)
    if weight.dtype not in FLOATS:
        raise FormatError(name, f"its weight is {weight.dtype}, which no format known here has", KNOWN)
    return StoredLinear(name, "", *_matrix(weight, name), (8 * weight.itemsize,), 0, False)


KNOWN = "AutoGPTQ's tensors, compressed-tensors' packed, int8 and FP4 weights, ours, and floats are known"


def _factored(headers: Mapping[str, Header], name: str) -> StoredLinear:
    a = _header(headers, stored_factor_a(headers, name))
    outputs, rank = _matrix(headers[f"{name}.{FACTOR_B}"], f"{name}.{FACTOR_B}")
    rows, inputs = _matrix(a, f"{name}'s {FACTOR_A}")
    if rows != rank:
        raise CheckpointError(name, f"factors of [{outputs}, {rank}] and [{rows}, {inputs}] have no product", KNOWN)
    return StoredLinear(name, LOW_RANK, outputs, inputs, (8 * a.itemsize,), 0, False, rank=rank)


def _coded_factors(reader: Reader, name: str) -> StoredLinear:
    own = stored_factor_a(reader.headers, name)
    _header(reader.headers, f"{own}.{PACKED}")
    a, b = _packed(reader, own), _packed(reader, f"{name}.{FACTOR_B}")
    bits = tuple(width for width in a.bits if width in b.bits)
    rows = a.groups == b.groups == 1
    if a.outputs != b.inputs or not bits or not (rows or a.group_size == b.group_size) or a.zeros != b.zeros:
        raise CheckpointError(name, f"codes of {a} and {b} are not of factors that have a product", KNOWN)
    return StoredLinear(name, PACK_QUANTIZED, b.outputs, a.inputs, bits, a.groups, a.zeros, a.scale_dtype, a.outputs)


def _gptq(headers: Mapping[str, Header], name: str) -> StoredLinear:
    words, outputs = _matrix(headers[f"{name}.qweight"], f"{name}.qweight")
    groups, zero_words = _matrix(_header(headers, f"{name}.qzeros"), f"{name}.qzeros")
    scales = _header(headers, f"{name}.scales")
    if scales.shape != (groups, outputs):
        what = f"scales of {list(scales.shape)} beside {groups} groups of zeros and {outputs} outputs"
        raise CheckpointError(name, what, KNOWN)
    found = tuple(width for width in WIDTHS if packing.word_count(outputs, width) == zero_words)
    if f"{name}.g_idx" in headers:
        inputs = headers[f"{name}.g_idx"].count
        found = tuple(width for width in found if packing.word_count(inputs, width) == words)
    else:
        inputs = words * packing.WORD // found[0] if found else 0
    if not found:
        what = f"{words} words of codes for each output and {zero_words} of zeros for each group fit no width"
        raise CheckpointError(name, what, KNOWN)
    return StoredLinear(name, GPTQ, outputs, inputs, found, groups, True, scales.dtype)


def _codebook(reader: Reader, name: str) -> StoredLinear:
    headers = reader.headers
    rows, words = _matrix(headers[f"{name}.codebook_codes"], f"{name}.codebook_codes")
    centroids = _header(headers, f"{name}.codebook_centroids")
    _header(headers, f"{name}.codebook_shape")
    outputs, inputs = (int(size) for size in reader.get(f"{name}.codebook_shape").flatten()[:2])
    bits = centroids.shape[-1].bit_length() - 1
    if rows != outputs or centroids.shape[:1] != (outputs,) or packing.word_count(inputs, bits) != words:
        what = f"words of [{rows}, {words}] and codebooks of {list(centroids.shape)} are not of [{outputs}, {inputs}]"
        raise CheckpointError(name, what, KNOWN)
    return StoredLinear(name, CODEBOOK, outputs, inputs, (bits,), centroids.shape[1], False, centroids.dtype)


def _nvfp4(headers: Mapping[str, Header], name: str) -> StoredLinear:
    outputs, pairs = _matrix(headers[f"{name}.weight_packed"], f"{name}.weight_packed")
    scale = _header(headers, f"{name}.weight_scale")
    _header(headers, f"{name}.weight_global_scale")
    if scale.shape != (outputs, 2 * pairs // FP4_GROUP):
        raise CheckpointError(name, f"scales of {list(scale.shape)} beside codes of [{outputs}, {2 * pairs}]", KNOWN)
    return StoredLinear(name, NVFP4, outputs, 2 * pairs, (4,), scale.shape[1], False, scale.dtype)


def _packed(reader: Reader, name: str) -> StoredLinear:
    headers, codes = reader.headers, reader.headers[f"{name}.weight_packed"]
    if codes.dtype != "I32":
        raise FormatError(name, f"its codes are {codes.dtype}, which no format known here has", KNOWN)
    rows, words = _matrix(codes, f"{name}.weight_packed")
    scale = _header(headers, f"{name}.weight_scale")
    _header(headers, f"{name}.weight_shape")
    outputs, inputs = (int(size) for size in reader.get(f"{name}.weight_shape").flatten()[:2])
    dense = [width for width in WIDTHS if packing.word_count(inputs, width) == words]
    padded = [width for width in WIDTHS if packing.word_count_padded(inputs, width) == words]
    found = tuple(dict.fromkeys((*dense, *padded)))
    if rows != outputs or not found:
        what = f"words of [{rows}, {words}] hold no codes of [{outputs}, {inputs}], its weight_shape"
        raise CheckpointError(name, what, KNOWN)
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    zeros = f"{name}.weight_zero_point" in headers
    return StoredLinear(name, PACK_QUANTIZED, outputs, inputs, found, groups, zeros, scale.dtype)


def _header(headers: Mapping[str, Header], name: str) -> Header:
    if name not in headers:
        raise CheckpointError(name, "is missing", KNOWN)
    return headers[name]


def _matrix(header: Header, name: str) -> tuple[int, int]:
    if len(header.shape) != 2:
        raise CheckpointError(name, f"is no matrix, its shape is {list(header.shape)}", KNOWN)
    return header.shape[0], header.shape[1]


def dense_shapes(reader: Reader, linears: Mapping[str, StoredLinear]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's tensors as if none were quantized or factored."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, header in reader.headers.items():
        module, _, part = name.rpartition(".")
        if module in linears and part in (*formats.CODES, "weight"):
            shapes[f"{module}.weight"] = (linears[module].outputs, linears[module].inputs)
        elif part not in formats.PARAMETERS and not is_factor(name):
            shapes[name] = header.shape
    factored = (linear for linear in linears.values() if linear.rank)
    return shapes | {f"{linear.name}.weight": (linear.outputs, linear.inputs) for linear in factored}


def of_unknown_dtype(reader: Reader) -> list[str]:
    """Tensors of dtypes that no format known here stores there: float8 and unsigned bytes but NVFP4's, ..."""
    return [
        name
        for name, header in reader.headers.items()
        if header.dtype not in BYTES or (header.dtype in IN_NVFP4 and not _in_nvfp4(reader.headers, name))
    ]


def _in_nvfp4(headers: Mapping[str, Header], name: str) -> bool:
    module, _, part = name.rpartition(".")
    return part in ("weight_packed", "weight_scale") and f"{module}.weight_global_scale" in headers
