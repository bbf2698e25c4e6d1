"""How compiled kernels see memory: bfloat16, which numpy has not, as the upper half of a float32 number; addresses."""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor


def bits(tensor: Tensor) -> np.ndarray:
    """A bfloat16 tensor's own memory as uint16: numpy has no such floats."""
    return tensor.detach().view(torch.int16).numpy().view(np.uint16)


def numbers(tensor: Tensor) -> np.ndarray:
    """A float32 or bfloat16 tensor's own memory, the latter as `bits`."""
    return tensor.detach().numpy() if tensor.dtype == torch.float32 else bits(tensor)


def address(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Where the byte at an offset into an array lies, for code of an intrinsic."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(builder.bitcast(data, ir.IntType(8).as_pointer()), [offset])


@intrinsic
def _number(_: Any, bits: Any) -> Any:
    """float32 of its bits."""
    return types.float32(types.uint32), lambda _, builder, __, given: builder.bitcast(given[0], ir.FloatType())


@intrinsic
def _in_bits(_: Any, number: Any) -> Any:
    return types.uint32(types.float32), lambda _, builder, __, given: builder.bitcast(given[0], ir.IntType(32))


@njit(nogil=True, inline="always")
def wide(bits):  # type: ignore[no-untyped-def]
    """float32 of a bfloat16 number's bits."""
    return _number(np.uint32(bits) << np.uint32(16))


@njit(nogil=True, inline="always")
def narrow(number):  # type: ignore[no-untyped-def]
    """The bits of the bfloat16 number next to a float32 number, of two the even one."""
    bits = _in_bits(number)
    return (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
