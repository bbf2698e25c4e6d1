"""Products of matrices by a CPU's 512-bit instructions (AVX-512), summed in float32: compiled kernels.

One instruction adds, to sixteen sums in float32, the products of sixteen float32 numbers, or of sixteen pairs of
bfloat16 numbers, which fit float32 exactly. A tile of TALL rows x PANEL columns of sums stays in registers while inputs
pass: ten loads for every 24 instructions. What is multiplied stands in panels of PANEL units side by side, a unit of 32
bits being a float32 number, or two bfloat16 numbers that are neighbours in what is summed. Knows arrays; no tensor.

The instructions: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VFMADD and VDPBF16PS; AMD64
Architecture Programmer's Manual, volume 4. Where they do not exist, importing this file is harmless and calling a
kernel is not: see `panel_products.works`.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hubplugin.kernels.instructions.bits import address
from hubplugin.kernels.threads import compiled

LANES, LINE = 16, 64  # float32 numbers of a register, and its bytes
WIDE = 4  # registers side by side in a tile of sums
PANEL = WIDE * LANES  # columns of a tile of sums
TALL, SOME = 6, 4  # rows of a tile of sums; a panel's columns are ten such tiles as rows, and one of these
AHEAD = 2**17  # units, of as many rows as hold so many, that stay in the second-level cache while all columns pass
_UNIT, _WORD = ir.IntType(32), ir.IntType(64)
_SUMS, _UNITS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_UNIT, LANES)


class _Bfloat(ir.Type):
    """LLVM's name of the type; llvmlite has none."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat)

    def __hash__(self) -> int:
        return hash(_Bfloat)


_HALVES, _SHORT = ir.VectorType(_Bfloat(), 2 * LANES), ir.VectorType(_Bfloat(), LANES)


def _dot(builder: Any, total: Any, one: Any, other: Any) -> Any:
    kind = ir.FunctionType(_SUMS, [_SUMS, _HALVES, _HALVES])
    called = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    return builder.call(called, [total, builder.bitcast(one, _HALVES), builder.bitcast(other, _HALVES)])


def _fma(builder: Any, total: Any, one: Any, other: Any) -> Any:
    kind = ir.FunctionType(_SUMS, [_SUMS] * 3)
    called = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v16f32")
    return builder.call(called, [builder.bitcast(one, _SUMS), builder.bitcast(other, _SUMS), total])


def _tile(tall: int, added: Any) -> Any:
    """Sums products of `count` units and adds them to a tile, `tall` rows x PANEL from byte `place` of `out` on.

    Byte `at` of `left` is the first row's first unit; `pitch` bytes lie between rows, `step` between units. Byte `to`
    of `right` is a panel's first unit. A `fresh` tile is written, not added to; one of bfloat16, as uint16, always is,
    rounded. Sums begin at zero here, not at what is there, because a long sum loses digits of whatever is added to it.
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
        count: Any,
        out: Any,
        place: Any,
        fresh: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            left, at, pitch, step, right, to, count, out, place, fresh = given
            rows = address(context, builder, signature.args[0], left, at)
            panel = address(context, builder, signature.args[4], right, to)
            corner = address(context, builder, signature.args[7], out, place)
            shaped = context.make_array(signature.args[7])(context, builder, out)
            across = cgutils.unpack_tuple(builder, shaped.strides, 2)[0]
            places = [(row, column) for row in range(tall) for column in range(WIDE)]
            sums = {where: cgutils.alloca_once(builder, _SUMS) for where in places}  # registers, once LLVM is done
            for where in places:
                builder.store(ir.Constant(_SUMS, [0.0] * LANES), sums[where])
            with cgutils.for_range(builder, count) as loop:
                start, begin = builder.mul(loop.index, _WORD(WIDE * LINE)), builder.mul(loop.index, step)
                columns = [_vector(builder, panel, builder.add(start, _WORD(n * LINE))) for n in range(WIDE)]
                for row in range(tall):
                    same = _everywhere(builder, rows, builder.add(builder.mul(pitch, _WORD(row)), begin))
                    for column in range(WIDE):
                        total = sums[row, column]
                        builder.store(added(builder, builder.load(total), same, columns[column]), total)
            _write(builder, sums, corner, across, fresh, signature.args[7].dtype == types.uint16)
            return context.get_dummy_value()

        whole = types.int64
        return types.none(left, whole, whole, whole, right, whole, whole, out, whole, types.boolean), generate

    return tile


def _write(builder: Any, sums: dict[tuple[int, int], Any], corner: Any, across: Any, fresh: Any, short: bool) -> None:
    """Sums by row and register of a tile, whose first byte is at `corner`, to its memory; `short`: as bfloat16."""
    kind, size, align = (_SHORT, LINE // 2, 2) if short else (_SUMS, LINE, 4)

    def place(row: int, column: int) -> Any:
        offset = builder.add(builder.mul(across, _WORD(row)), _WORD(column * size))
        return builder.bitcast(builder.gep(corner, [offset]), kind.as_pointer())

    if short:
        rounding = ir.FunctionType(_SHORT, [_SUMS])
        called = cgutils.get_or_insert_function(builder.module, rounding, "llvm.x86.avx512bf16.cvtneps2bf16.512")
        for (row, column), total in sums.items():
            builder.store(builder.call(called, [builder.load(total)]), place(row, column), align=align)
        return
    with builder.if_else(fresh) as (empty, kept):  # each way stores: sums that meet again first leave the registers
        with empty:
            for (row, column), total in sums.items():
                builder.store(builder.load(total), place(row, column), align=align)
        with kept:
            for (row, column), total in sums.items():
                before = builder.load(place(row, column), align=align)
                builder.store(builder.fadd(before, builder.load(total)), place(row, column), align=align)


def _vector(builder: Any, start: Any, offset: Any) -> Any:
    """Sixteen units."""
    return builder.load(builder.bitcast(builder.gep(start, [offset]), _UNITS.as_pointer()), align=4)


def _everywhere(builder: Any, start: Any, offset: Any) -> Any:
    """One unit, sixteen times."""
    unit = builder.load(builder.bitcast(builder.gep(start, [offset]), _UNIT.as_pointer()), align=2)
    empty = ir.Constant(_UNITS, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(empty, unit, _UNIT(0)), empty, ir.Constant(_UNITS, [0] * LANES)
    )


_full, _some, _row = _tile(TALL, _dot), _tile(SOME, _dot), _tile(1, _dot)
_full_single, _row_single = _tile(TALL, _fma), _tile(1, _fma)


@compiled
def dots(first, last, left, at, pitch, step, right, to, count, out, column, fresh):  # type: ignore[no-untyped-def]
    """What `_tile` does with bfloat16, to rows first .. last of `out` from byte `column` on; `at` is the first one."""
    row, across = first, out.strides[0]
    while row < last:
        here, place = at + (row - first) * pitch, row * across + column
        if row + TALL <= last:
            _full(left, here, pitch, step, right, to, count, out, place, fresh)
            row += TALL
        elif row + SOME <= last:
            _some(left, here, pitch, step, right, to, count, out, place, fresh)
            row += SOME
        else:
            _row(left, here, pitch, step, right, to, count, out, place, fresh)
            row += 1


@compiled
def _fmas(first, last, left, at, pitch, right, to, count, out, column):  # type: ignore[no-untyped-def]
    """The same with float32, whose units lie side by side in `left`; what is there is written over."""
    row, across = first, out.strides[0]
    while row < last:
        here, place = at + (row - first) * pitch, row * across + column
        if row + TALL <= last:
            _full_single(left, here, pitch, 4, right, to, count, out, place, True)
            row += TALL
        else:
            _row_single(left, here, pitch, 4, right, to, count, out, place, True)
            row += 1


@compiled
def multiply(first, last, rows, panels, single, out):  # type: ignore[no-untyped-def]
    """As `tiles`, block by block: the inputs of a block stay in the second-level cache while all panels pass."""
    block = max(TALL, AHEAD // panels.shape[1] // TALL * TALL)
    for begin in range(first, last, block):
        tiles(begin, min(begin + block, last), rows, panels, single, out)


@compiled
def tiles(first, last, rows, panels, single, out):  # type: ignore[no-untyped-def]
    """out = rows times panels, for rows first .. last; [rows, at least panels x PANEL], columns contiguous.

    It is float32, or bits of bfloat16. Rows are [rows, inputs], inputs contiguous, as many as the panels have or more:
    float32 if `single`, else bits of bfloat16. Panels are [panels, units, PANEL] of 32 bits each, units and PANEL
    contiguous.
    """
    pitch, count = rows.strides[0], panels.shape[1]
    for panel in range(len(panels)):
        to, column = panel * panels.strides[0], panel * PANEL * out.itemsize
        if single:
            _fmas(first, last, rows, first * pitch, pitch, panels, to, count, out, column)
        else:
            dots(first, last, rows, first * pitch, pitch, 4, panels, to, count, out, column, True)
