"""Products of bfloat16 matrices in a CPU's matrix unit (AMX), summed in float32: compiled kernels over packed tiles.

A tile is sixteen rows of 64 bytes. One instruction multiplies a tile of 16 outputs x 16 pairs of tokens with one of
16 pairs x 16 outputs and adds 16 x 16 sums in float32; products of bfloat16 numbers fit float32 exactly. Four tiles of
sums stay in the unit while a PANEL of each side passes: two tiles are loaded for every two multiplied. Knows no layer.

The instructions and their tiles: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS.
Where they do not exist, importing this file is harmless and calling a kernel is not: see `tiles.there`.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hubplugin.kernels.instructions.bits import address
from hubplugin.kernels.threads import compiled

ROW, TILE = 64, 1024  # bytes
PANEL, DEEP = 32, 32  # features in two tiles side by side, tokens in the depth of a tile
PAIR = 2 * TILE  # bytes of a panel at one depth
ACROSS = 4 * PANEL  # bytes of sums that lie side by side for a panel
RUN = 32  # depths between loading sums and storing them
SIDE = 12  # panels of the right side that stay in the second-level cache for a RUN: 768 KB
SUMS, LEFT, RIGHT = range(4), (4, 5), (6, 7)  # the unit's eight tiles

SIXTEEN = 16
_BYTE, _WORD, _NOTHING = ir.IntType(8), ir.IntType(64), ir.VoidType()
_HALVES, _PAIRS = ir.VectorType(ir.IntType(16), SIXTEEN), ir.VectorType(ir.IntType(32), SIXTEEN)


def shapes() -> np.ndarray:
    """What the unit is configured with: eight tiles of full size, in its own format, palette 1."""
    made = np.zeros(64, dtype=np.uint8)
    made[0] = 1
    made[16:32:2] = ROW
    made[48:56] = SIXTEEN
    return made


def _call(builder: Any, name: str, *arguments: Any) -> None:
    kind = ir.FunctionType(_NOTHING, [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


def _prefetch(builder: Any, place: Any) -> None:
    """Bring a line to the first-level cache, to be written to."""
    hints = [ir.Constant(ir.IntType(32), hint) for hint in (1, 3, 1)]  # write, keep, data
    kind = ir.FunctionType(_NOTHING, [place.type, *(hint.type for hint in hints)])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [place, *hints])


def _tile(number: int) -> Any:
    return ir.Constant(_BYTE, number)


def _bytes(count: int) -> Any:
    return ir.Constant(_WORD, count)


@intrinsic
def _configure(_: Any, shapes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "ldtilecfg", address(context, builder, signature.args[0], arguments[0], _bytes(0)))
        return context.get_dummy_value()

    return types.none(shapes), generate


@intrinsic
def _release(_: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.none(), generate


def _moving(instruction: str) -> Any:
    """Loads or stores the four tiles of sums, two by two, where a float32 matrix has them."""

    @intrinsic
    def move(_: Any, matrix: Any, offset: Any, pitch: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            matrix, offset, pitch = arguments
            corner = address(context, builder, signature.args[0], matrix, offset)
            below = builder.gep(corner, [builder.mul(pitch, _bytes(SIXTEEN))])
            places = (corner, builder.gep(corner, [_bytes(ROW)]), below, builder.gep(below, [_bytes(ROW)]))
            for number, place in zip(SUMS, places, strict=True):
                _call(builder, instruction, _tile(number), place, pitch)
            return context.get_dummy_value()

        return types.none(matrix, types.int64, types.int64), generate

    return move


_load, _store = _moving("tileloadd64"), _moving("tilestored64")


@intrinsic
def _announce(_: Any, matrix: Any, offset: Any, pitch: Any) -> Any:
    """Bring the lines of four tiles of sums near, for a `_load` to come."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix, offset, pitch = arguments
        corner = address(context, builder, signature.args[0], matrix, offset)
        for row in range(PANEL):
            place = builder.gep(corner, [builder.mul(pitch, _bytes(row))])
            _prefetch(builder, place)
            _prefetch(builder, builder.gep(place, [_bytes(ROW)]))
        return context.get_dummy_value()

    return types.none(matrix, types.int64, types.int64), generate


@intrinsic
def _multiply(_: Any, left: Any, at: Any, right: Any, to: Any) -> Any:
    """Add the products of the panel at byte `at` of `left` and the one at byte `to` of `right` to the four tiles."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def load(number: int, side: int, past: int) -> None:
            offset = builder.add(arguments[side + 1], _bytes(past))
            place = address(context, builder, signature.args[side], arguments[side], offset)
            _call(builder, "tileloadd64", _tile(number), place, _bytes(ROW))

        def product(number: int, left: int, right: int) -> None:
            _call(builder, "tdpbf16ps", _tile(number), _tile(left), _tile(right))

        load(LEFT[0], 0, 0)
        load(RIGHT[0], 2, 0)
        product(0, LEFT[0], RIGHT[0])
        load(RIGHT[1], 2, TILE)
        product(1, LEFT[0], RIGHT[1])
        load(LEFT[1], 0, TILE)
        product(2, LEFT[1], RIGHT[0])
        product(3, LEFT[1], RIGHT[1])
        return context.get_dummy_value()

    return types.none(left, types.int64, right, types.int64), generate


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Sixteen vectors of sixteen, transposed: quarters change places, then theirs."""
    rows = list(rows)
    lanes = range(SIXTEEN)
    for far in (8, 4, 2, 1):
        upper = ir.Constant(_PAIRS, [SIXTEEN + lane - far if lane & far else lane for lane in lanes])
        lower = ir.Constant(_PAIRS, [SIXTEEN + lane if lane & far else lane + far for lane in lanes])
        for one in (lane for lane in lanes if not lane & far):
            above, below = rows[one], rows[one + far]
            rows[one] = builder.shuffle_vector(above, below, upper)
            rows[one + far] = builder.shuffle_vector(above, below, lower)
    return rows


def _packing(both: bool) -> Any:
    """Makes a left tile, or a tile for either side, of 32 tokens x 16 features that begin at byte `start`."""

    @intrinsic
    def pack(_: Any, rows: Any, start: Any, pitch: Any, left: Any, right: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            rows, start, pitch, left, right, at = arguments
            corner = address(context, builder, signature.args[0], rows, start)

            def token(number: int) -> Any:
                place = builder.gep(corner, [builder.mul(pitch, _bytes(number))])
                halves = builder.load(builder.bitcast(place, _HALVES.as_pointer()), align=2)
                return builder.zext(halves, _PAIRS)

            def put(vectors: list[Any], kind: Any, tiles: Any) -> None:
                for number, vector in enumerate(vectors):
                    place = address(context, builder, kind, tiles, builder.add(at, _bytes(number * ROW)))
                    builder.store(vector, builder.bitcast(place, _PAIRS.as_pointer()), align=4)

            high = ir.Constant(_PAIRS, [16] * SIXTEEN)
            pairs = [builder.or_(token(2 * k), builder.shl(token(2 * k + 1), high)) for k in range(SIXTEEN)]
            if both:
                put(pairs, signature.args[4], right)
            put(_transposed(builder, pairs), signature.args[3], left)
            return context.get_dummy_value()

        whole = types.int64
        return types.none(rows, whole, whole, left, right, whole), generate

    return pack


_pack_left, _pack_both = _packing(False), _packing(True)


@compiled
def pack(first, last, rows, before, both, left, right):  # type: ignore[no-untyped-def]
    """Panels first .. last of uint16 rows [tokens, features], as bytes left and right of the tiles at depth `before`.

    Tokens are a multiple of DEEP, features of PANEL. Tiles are uint32 [panels, depths, 2, 16, 16]; without `both`
    `right` is not written.
    """
    pitch, depths = rows.strides[0], left.shape[1]
    for depth in range(len(rows) // DEEP):
        for panel in range(first, last):
            for half in range(2):
                start = depth * DEEP * pitch + panel * ROW + half * (ROW // 2)
                at = (panel * depths + before + depth) * PAIR + half * TILE
                if both:
                    _pack_both(rows, start, pitch, left, right, at)
                else:
                    _pack_left(rows, start, pitch, left, right, at)


@compiled
def add(first, last, workers, shapes, left, right, begin, end, shift, total, lower):  # type: ignore[no-untyped-def]
    """total += left^T right over depths begin .. end of `left`, which are those `shift` further on of `right`.

    Does what workers first .. last of `workers` have to do. With `lower`, only panels on and below the diagonal.
    """
    _configure(shapes)
    for start in range(0, len(right), SIDE):
        for depth in range(begin, end, RUN):
            for row in range(start if lower else 0, len(left)):
                if first <= row % workers < last:
                    stop = min(start + SIDE, row + 1 if lower else len(right))
                    _add_row(left, right, depth, min(depth + RUN, end), shift, total, row, start, stop, workers)
    _release()


@compiled
def _add_row(left, right, begin, end, shift, total, row, start, stop, workers):  # type: ignore[no-untyped-def]
    """What `add` does to panels start .. stop of a row of panels."""
    pitch = total.strides[0]
    one = row * left.shape[1] * PAIR
    for column in range(start, stop):
        corner, other = row * PANEL * pitch + column * ACROSS, (column * right.shape[1] + shift) * PAIR
        _load(total, corner, pitch)
        if column + 1 < stop:
            _announce(total, corner + ACROSS, pitch)
        elif row + workers < len(left):
            _announce(total, (row + workers) * PANEL * pitch + start * ACROSS, pitch)
        for depth in range(begin, end):
            _multiply(left, one + depth * PAIR, right, other + depth * PAIR)
        _store(total, corner, pitch)
