"""What a variant's tensors are, and what they weigh: pruned shapes, each layout's tensors, bits per weight.

Arithmetic on headers alone: it refuses nothing and reads no weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, lcm

from hubplugin.checkpoint.format_names import (
    CODEBOOK,
    FACTOR_B,
    GPTQ,
    INT_QUANTIZED,
    NVFP4,
    PACKED,
    factor_a,
    is_factor,
    is_factored,
    stored_factor_a,
)
from hubplugin.checkpoint.headers import Header
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family
from hubplugin.plan.schemes import Factors, LinearPlan, Scheme

WIDTH_TILE = 128  # pruned widths are multiples of it: kernels and tensor parallelism like them
SMALL_TILE = 32  # where WIDTH_TILE would leave the width as it was, or nothing of it
RATIOS = tuple(hundredth / 100 for hundredth in range(1, 100))  # of which errors propose one that rounds to a width
# all tensors of a quantized weight, in any layout, by the end of the names
PACKED_PARTS = (
    *("qweight", "qzeros", "scales", "g_idx"),
    *("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale"),
    *("codebook_codes", "codebook_centroids", "codebook_shape"),
)


@dataclass(frozen=True)
class Weight:
    """What a set of tensors weighs."""

    bytes: int  # of all tensors; the files add their headers
    linear_bits_per_weight: float
    model_bits_per_weight: float


def kept_width(before: int, ratio: float, group_size: int | None) -> int | None:
    """Channels that stay when `ratio` of `before` are to go; None where no allowed count is left.

    The nearest multiple of lcm(128, group_size), the larger one on a tie: every consumer keeps whole
    groups, and kernels and tensor parallelism keep whole tiles. In widths too small for that (nothing
    would go, or everything), the nearest multiple of lcm(32, group_size).
    """
    for tile in (WIDTH_TILE, SMALL_TILE):
        unit = width_unit(tile, group_size)
        kept = floor(round(before * (1 - ratio) / unit, 9) + 0.5) * unit
        if 0 < kept < before:
            return kept
    return None


def width_unit(tile: int, group_size: int | None) -> int:
    """The step of allowed widths."""
    return lcm(tile, group_size) if group_size and group_size > 0 else tile


def names(family: Family, size: Dimensions) -> list[str]:
    """Full module paths of all linears of all blocks, block by block, in the order of the forward pass."""
    return [
        f"{family.block.format(i=layer)}.{name}"
        for layer in range(size.layers)
        for name in architecture.linear_shapes(family, size.at(layer))
    ]


def origin(family: Family, name: str, sources: Sequence[int]) -> str:
    """The base's name of a tensor of a variant, whose blocks are the base's `sources`."""
    before, after = family.block.split("{i}")
    if not name.startswith(before):
        return name
    number, _, rest = name[len(before) :].partition(".")
    return f"{family.block.format(i=sources[int(number)])}.{rest}" if not after else name


def stored(
    dense: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Header], family: Family, sources: Sequence[int]
) -> dict[str, Header]:
    """For every tensor of a variant, the one of the base that it comes from; for a new bias, its weight's."""
    headers = {}
    for name in dense:
        old = origin(family, name, sources)
        headers[name] = tensors.get(old) or tensors[old.removesuffix("bias") + "weight"]
    return headers


def changed(before: Dimensions, after: Dimensions) -> dict[str, tuple[int, int]]:
    """Keys of config.json whose values differ; where blocks differ, the widest block's."""
    keys = {
        "num_hidden_layers": (before.layers, after.layers),
        "num_attention_heads": (before.heads, after.heads),
        "num_key_value_heads": (before.kv_heads, after.kv_heads),
        "intermediate_size": (before.ffn, after.ffn),
    }
    return {key: pair for key, pair in keys.items() if pair[0] != pair[1]}


def linears(
    family: Family,
    before: Dimensions,
    after: Dimensions,
    schemes: Mapping[str, Scheme | None],
    sources: Sequence[int] = (),
    factors: Mapping[str, Factors] | None = None,
) -> tuple[LinearPlan, ...]:
    """All linears of all blocks, in the order of `names`; those without a scheme or factors stay dense.

    `sources` are the blocks of `before` that those of `after` come from, where some are left out.
    """
    return tuple(
        LinearPlan(
            name=(full := f"{family.block.format(i=layer)}.{name}"),
            input_group=family.input_group_of(name).name,
            before=architecture.linear_shapes(family, before.at(sources[layer] if sources else layer))[name],
            after=shape,
            scheme=schemes.get(full),
            factors=factors.get(full) if factors else None,
        )
        for layer in range(after.layers)
        for name, shape in architecture.linear_shapes(family, after.at(layer)).items()
    )


def tensors(
    dense: Mapping[str, tuple[int, ...]], stored: Mapping[str, Header], linears: Iterable[LinearPlan]
) -> dict[str, Header]:
    """Headers of a variant's folder: a layout's tensors for a quantized weight, factors, the rest as in the base.

    `dense` are the names and shapes of the pruned, unquantized model; `stored` gives their dtypes.
    """
    planned = {f"{linear.name}.weight": linear for linear in linears}
    headers: dict[str, Header] = {}
    for name, shape in dense.items():
        linear, dtype = planned.get(name), stored[name].dtype
        if linear is None or not (linear.scheme or (linear.factors and linear.factors.stored)):
            headers[name] = Header(dtype, shape)
            continue
        for part, matrix in matrices(linear).items():
            if linear.scheme:
                packed = packed_tensors(*matrix, linear.scheme, dtype)
                headers.update({f"{part}.{end}": header for end, header in packed.items()})
            else:
                headers[part] = Header(dtype, matrix)
    return headers


def matrices(linear: LinearPlan) -> dict[str, tuple[int, int]]:
    """What stands for a linear's weight, by full name without what a layout appends: the two factors where it is stored
    as such, else itself. A shared A has the same name for all that share it."""
    outputs, inputs = linear.after
    if linear.factors is None or not linear.factors.stored:
        return {linear.name: linear.after}
    rank = linear.factors.rank
    return {factor_a(linear.name, linear.factors.shared): (rank, inputs), f"{linear.name}.{FACTOR_B}": (outputs, rank)}


def factors_in(tensors: Mapping[str, Header], linear: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The two factors of a linear of [outputs, inputs] that a folder with these tensors has, by full name, whether they
    are codes or not; empty where it has none."""
    if not is_factored(tensors, linear):
        return {}
    a, (outputs, inputs) = stored_factor_a(tensors, linear), shape
    rank = tensors[a if a in tensors else f"{a}.{PACKED}"].shape[0]
    return {a: (rank, inputs), f"{linear}.{FACTOR_B}": (outputs, rank)}


def with_factors(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Header]) -> dict[str, tuple[int, ...]]:
    """Shapes of a model by name, with the factors that stand among `tensors` in place of the weights they make up."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        found |= factors_in(tensors, name.removesuffix(".weight"), shape) or {name: shape}
    return found


def packed_tensors(outputs: int, inputs: int, scheme: Scheme, dtype: str) -> dict[str, Header]:
    """A layout's tensors for one weight of [outputs, inputs] that the base stores as `dtype`; `layout` fills them."""
    groups = inputs // scheme.group_size if scheme.group_size > 0 else 1
    if scheme.layout == GPTQ:
        return {
            "qweight": Header("I32", (_words(inputs, scheme.bits), outputs)),
            "qzeros": Header("I32", (groups, _words(outputs, scheme.bits))),
            "scales": Header("F16", (groups, outputs)),
            "g_idx": Header("I32", (inputs,)),
        }
    if scheme.layout == CODEBOOK:
        return {
            "codebook_codes": Header("I32", (outputs, _words(inputs, scheme.bits))),
            "codebook_centroids": Header("F16", (outputs, groups, 2**scheme.bits)),
            "codebook_shape": Header("I64", (2,)),
        }
    if scheme.layout == NVFP4:
        return {
            "weight_packed": Header("U8", (outputs, inputs // 2)),
            "weight_scale": Header("F8_E4M3", (outputs, groups)),
            "weight_global_scale": Header("F32", (1,)),
        }
    scale = Header(dtype, (outputs, groups))
    if scheme.layout == INT_QUANTIZED:
        return {"weight": Header("I8", (outputs, inputs)), "weight_scale": scale}
    packed = {
        "weight_packed": Header("I32", (outputs, _words(inputs, scheme.bits))),
        "weight_scale": scale,
        "weight_shape": Header("I64", (2,)),
    }
    if not scheme.symmetric:
        packed["weight_zero_point"] = Header("I32", (_words(outputs, scheme.bits), groups))
    return packed


def _words(count: int, bits: int) -> int:
    """32-bit words that a row of codes takes."""
    return -(-count * bits // 32)


def parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Logical weights of a model with these tensors."""
    return sum(Header("F32", shape).count for shape in shapes.values())


def linear_parameters(family: Family, size: Dimensions) -> int:
    """Weights of the linears inside the blocks, biases not counted."""
    return sum(block_parameters(family, size.at(layer)) for layer in range(size.layers))


def block_parameters(family: Family, size: Dimensions) -> int:
    """Weights of the linears of one block of these sizes."""
    return sum(outputs * inputs for outputs, inputs in architecture.linear_shapes(family, size).values())


def measure(tensors: Mapping[str, Header], linears: Iterable[LinearPlan], parameters: int) -> Weight:
    """Bytes and bits per weight of the tensors of one folder, planned or read back from its files.

    `linears` are those of the blocks, with the shapes they have in that folder; `parameters` is the logical
    count. A linear's bits are those of its weight, or of its packed tensors (codes, scales, zeros, g_idx, shape),
    over its own weights after pruning; its bias is no weight. Factors, or their codes, are weights themselves. The
    model's bits are those of all tensors.
    """
    linears = tuple(linears)
    total = sum(header.bytes for header in tensors.values())
    names = [f"{linear.name}.{part}" for linear in linears for part in ("weight", *PACKED_PARTS)]
    names += filter(is_factor, tensors)
    stored = sum(tensors[name].bytes for name in names if name in tensors)
    return Weight(total, 8 * stored / linear_weights(tensors, linears), 8 * total / parameters)


def linear_weights(tensors: Mapping[str, Header], linears: Iterable[LinearPlan]) -> int:
    """Weights of these linears where their folder holds these tensors: outputs times inputs, or those of factors."""
    return parameters(with_factors({f"{one.name}.weight": one.after for one in linears}, tensors))
