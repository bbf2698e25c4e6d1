"""Products of bfloat16 matrices by a CPU's dot-product instruction (AVX-512 BF16), summed in float32: compiled kernels.

One instruction adds, to sixteen sums in float32, the products of sixteen pairs of bfloat16 numbers, which fit float32
exactly. A tile of TALL rows x PANEL columns of sums stays in registers while the inputs pass: ten loads for every 24
instructions. What is multiplied stands in panels: pairs of neighbours in what is summed, PANEL of them in a row. Knows
arrays; no tensor and no layer.

The instruction: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VDPBF16PS; AMD64 Architecture
Programmer's Manual, volume 4. Where it does not exist, importing this file is harmless and calling a kernel is not: see
`split_products.works`.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hubplugin.kernels.threads import compiled

LANES, LINE = 16, 64  # float32 numbers of a register, and its bytes
WIDE = 4  # registers side by side in a tile of sums
PANEL = WIDE * LANES  # columns of a tile of sums
TALL, SOME = 6, 4  # rows of a tile of sums; a panel's columns are ten such tiles as rows, and one of these
AHEAD = 2**17  # inputs, of as many rows as hold so many, that stay in the second-level cache while all columns pass
_SINGLE, _PAIR, _BYTE, _WORD = ir.FloatType(), ir.IntType(32), ir.IntType(8), ir.IntType(64)
_SUMS, _PAIRS = ir.VectorType(_SINGLE, LANES), ir.VectorType(_PAIR, LANES)


class _Bfloat(ir.Type):
    """LLVM's name of the type; llvmlite has none."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


_HALVES = ir.VectorType(_Bfloat(), 2 * LANES)


def _at(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """A pointer to the byte at an offset into an array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(builder.bitcast(data, _BYTE.as_pointer()), [offset])


def _dot(builder: Any, total: Any, one: Any, other: Any) -> Any:
    kind = ir.FunctionType(_SUMS, [_SUMS, _HALVES, _HALVES])
    called = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(called, [total, builder.bitcast(one, _HALVES), builder.bitcast(other, _HALVES)])


def _tile(tall: int) -> Any:
    """Sums products of `pairs` pairs of inputs and adds them to a tile, `tall` rows x PANEL from byte `place` of `out`.

    Byte `at` of `left` is the first row's first pair; `pitch` bytes lie between rows, `step` between pairs. Byte `to`
    of `right` is a panel's first pair. A `fresh` tile is written, not added to. Sums begin at zero here, not at what is
    there, because a long sum loses digits of whatever is added to it.
    """

    @intrinsic
    def tile(
        _: Any,
        left: Any,
        at: Any,
        pitch: Any,
        step: Any,
        right: Any,
        to: Any,
        pairs: Any,
        out: Any,
        place: Any,
        fresh: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            left, at, pitch, step, right, to, pairs, out, place, fresh = given
            rows = _at(context, builder, signature.args[0], left, at)
            panel = _at(context, builder, signature.args[4], right, to)
            corner = _at(context, builder, signature.args[7], out, place)
            shaped = context.make_array(signature.args[7])(context, builder, out)
            across = cgutils.unpack_tuple(builder, shaped.strides, 2)[0]
            places = [(row, column) for row in range(tall) for column in range(WIDE)]

            def stored(row: int, column: int) -> Any:
                offset = builder.add(builder.mul(across, _WORD(row)), _WORD(column * LINE))
                return builder.bitcast(builder.gep(corner, [offset]), _SUMS.as_pointer())

            sums = {where: cgutils.alloca_once(builder, _SUMS) for where in places}  # registers, once LLVM is done
            for where in places:
                builder.store(ir.Constant(_SUMS, [0.0] * LANES), sums[where])
            with cgutils.for_range(builder, pairs) as loop:
                start, begin = builder.mul(loop.index, _WORD(WIDE * LINE)), builder.mul(loop.index, step)
                columns = [_vector(builder, panel, builder.add(start, _WORD(n * LINE))) for n in range(WIDE)]
                for row in range(tall):
                    same = _everywhere(builder, rows, builder.add(builder.mul(pitch, _WORD(row)), begin))
                    for column in range(WIDE):
                        total = sums[row, column]
                        builder.store(_dot(builder, builder.load(total), same, columns[column]), total)
            with builder.if_else(fresh) as (empty, kept):
                with empty:
                    for where in places:
                        builder.store(builder.load(sums[where]), stored(*where), align=4)
                with kept:
                    for where in places:
                        before = builder.load(stored(*where), align=4)
                        builder.store(builder.fadd(before, builder.load(sums[where])), stored(*where), align=4)
            return context.get_dummy_value()

        whole = types.int64
        return types.none(left, whole, whole, whole, right, whole, whole, out, whole, types.boolean), generate

    return tile


def _vector(builder: Any, start: Any, offset: Any) -> Any:
    """Sixteen pairs."""
    return builder.load(builder.bitcast(builder.gep(start, [offset]), _PAIRS.as_pointer()), align=4)


def _everywhere(builder: Any, start: Any, offset: Any) -> Any:
    """One pair, sixteen times."""
    pair = builder.load(builder.bitcast(builder.gep(start, [offset]), _PAIR.as_pointer()), align=2)
    empty = ir.Constant(_PAIRS, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(empty, pair, _PAIR(0)), empty, ir.Constant(_PAIRS, [0] * LANES)
    )


_full, _some, _row = _tile(TALL), _tile(SOME), _tile(1)


@compiled
def rows_of_tiles(first, last, left, at, pitch, step, right, to, pairs, out, column, fresh):  # type: ignore[no-untyped-def]
    """What `_tile` does, to rows first .. last of `out` from byte `column` on; `at` is the first of them."""
    row, across = first, out.strides[0]
    while row < last:
        here, place = at + (row - first) * pitch, row * across + column
        if row + TALL <= last:
            _full(left, here, pitch, step, right, to, pairs, out, place, fresh)
            row += TALL
        elif row + SOME <= last:
            _some(left, here, pitch, step, right, to, pairs, out, place, fresh)
            row += SOME
        else:
            _row(left, here, pitch, step, right, to, pairs, out, place, fresh)
            row += 1


@compiled
def multiply(first, last, parts, weights, order, out):  # type: ignore[no-untyped-def]
    """As `tiles`, block by block: the inputs of a block stay in the second-level cache while all panels pass."""
    block = max(TALL, AHEAD // parts.shape[2] // TALL * TALL)
    for begin in range(first, last, block):
        tiles(begin, min(begin + block, last), parts, weights, order, out)


@compiled
def tiles(first, last, parts, weights, order, out):  # type: ignore[no-untyped-def]
    """out = the sum over (part, weight) of `order` of parts[part] times weights[weight], for rows first .. last.

    `parts` are uint16 [parts, rows, inputs], inputs contiguous, as many as pairs of the weights or more; weights uint32
    [weights, panels, pairs, PANEL], two neighbouring inputs in each number, pairs and PANEL contiguous; out float32
    [rows, at least panels x PANEL], columns contiguous.
    """
    pitch, pairs = parts.strides[1], weights.shape[2]
    for panel in range(weights.shape[1]):
        for product in range(len(order)):
            at = order[product, 0] * parts.strides[0] + first * pitch
            to = order[product, 1] * weights.strides[0] + panel * weights.strides[1]
            column, fresh = panel * PANEL * 4, product == 0
            rows_of_tiles(first, last, parts, at, pitch, 4, weights, to, pairs, out, column, fresh)
