"""Float32 products on a CPU that multiplies bfloat16 several times as fast: as sums of bfloat16 products.

A float32 number is split into the bfloat16 number next to it and the one next to what is left: x = high + low, but for
2^-16 of it. A weight published in bfloat16 has no low part: x w = high w + low w are two products; other weights take a
third, high times their own low part. What is left out is 2^-16 of a term, or three times that; sums are in float32.
On two Zen 5 cores two such products take 0.42 of a float32 one's time and three 0.62 (`python bench/evaluation.py`).
After: Henry, Tang, Heinecke (2019), Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
Computations. Knows matrices and linears; no model.
"""

from functools import cache

import numpy as np
import torch
from llvmlite import binding
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from hubplugin.kernels.half_precision import avx512
from hubplugin.kernels.half_precision.avx512 import PANEL, TALL
from hubplugin.kernels.half_precision.bits import bits, narrow, wide
from hubplugin.kernels.threads import compiled, spread

FEWEST = 32  # rows below which packing and splitting cost more than they gain
# (part of the rows, part of the weight) of each product
OF_BFLOAT16 = ((0, 0),)
EXACT_WEIGHT = ((0, 0), (1, 0))
SPLIT_WEIGHT = ((0, 0), (1, 0), (0, 1))


class Packed:
    """A weight [outputs, inputs] as the kernel reads it: the part in bfloat16, and what is left of it where it is."""

    def __init__(self, weight: Tensor) -> None:
        self.version = _version(weight)
        high = weight.bfloat16()
        low = weight - high  # of the weight's own dtype
        parts = [high, low.bfloat16()] if bool(low.any()) else [high]
        exact = OF_BFLOAT16 if weight.dtype == torch.bfloat16 else EXACT_WEIGHT
        self.order = np.array(exact if len(parts) == 1 else SPLIT_WEIGHT)
        self.whole = len(weight) // PANEL * PANEL  # outputs that fill panels
        self.parts = np.stack([_panels(part[: self.whole]) for part in parts])


class SplitLinear(nn.Linear):
    """A linear in float32. What does not fit is torch's own product."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs [..., outputs] of inputs [..., inputs]."""
        rows = inputs.flatten(0, -2)
        if inputs.dtype != torch.float32 or not fits(rows, self.weight):
            return super().forward(inputs)
        made = product(rows, self.weight, torch.empty(len(rows), len(self.weight)))
        if self.bias is not None:
            made += self.bias
        return made.unflatten(0, inputs.shape[:-1])


def install(module: nn.Module) -> None:
    """Let the linears inside a module that computes in float32 split their products, where this CPU gains by it."""
    if not works():
        return
    for inner in module.modules():
        if type(inner) is nn.Linear:
            inner.__class__ = SplitLinear


def fits(rows: Tensor, weight: Tensor) -> bool:
    """Whether a product of rows [rows, inputs] and a weight [outputs, inputs] is taken here."""
    alike = rows.dtype == weight.dtype and rows.dtype in (torch.float32, torch.bfloat16)
    here = all(each.device.type == "cpu" and not learns(each) for each in (rows, weight))
    return alike and here and len(rows) >= FEWEST and len(weight) >= PANEL and weight.shape[1] % 2 == 0 and works()


def learns(tensor: Tensor) -> bool:
    """Whether a gradient is wanted, which no kernel here has."""
    return tensor.requires_grad and torch.is_grad_enabled()


def product(rows: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """rows weight^T of float32 or bfloat16, written to float32 `out` [rows, outputs].

    A weight is packed once while it lives and stays as it is.
    """
    packed: Packed | None = _PACKED.get(weight)
    if packed is None or packed.version != _version(weight):
        _PACKED[weight] = packed = Packed(weight)
    spread(avx512.multiply, len(rows), parts(rows.contiguous()), packed.parts, packed.order, out.numpy(), least=TALL)
    if packed.whole < len(weight):
        out[:, packed.whole :] = rows @ weight[packed.whole :].T
    return out


def _version(weight: Tensor) -> int:
    """Changes where numbers of a weight do; of a tensor made in inference mode torch keeps none."""
    return 0 if weight.is_inference() else weight._version


def parts(numbers: Tensor) -> np.ndarray:
    """Numbers [..., inputs] as bits of bfloat16 [parts, ..., inputs]: one part, of float32 high and low."""
    if numbers.dtype == torch.bfloat16:
        return bits(numbers)[None]
    rows = numbers.contiguous().flatten(0, -2)
    split = np.empty((2, *rows.shape), dtype=np.uint16)
    spread(_split, len(rows), rows.numpy(), split)
    return split.reshape(2, *numbers.shape)


_PACKED = WeakIdKeyDictionary()  # of weights, for tensors are equal by element


@cache
def works() -> bool:
    """Whether this CPU has the instruction at a rate worth it, and sums as it should. Tried out once.

    Processors of Intel have it at half of float32's rate where they hide their matrix unit.
    """
    if not (binding.get_host_cpu_name().startswith("znver") and binding.get_host_cpu_features().get("avx512bf16")):
        return False
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(count, 128, generator=generator) for count in (FEWEST + 1, PANEL + 1))
    exact = rows.double() @ weight.double().T
    with torch.inference_mode():
        made = product(rows, weight, torch.empty(len(rows), len(weight)))
        return bool((made - exact).abs().max() <= 2**-14 * exact.abs().max())


def _panels(weight: Tensor) -> np.ndarray:
    """bfloat16 [outputs, inputs] as uint32 [panels, inputs / 2, PANEL]."""
    pairs = bits(weight.contiguous()).view(np.uint32)
    return np.ascontiguousarray(pairs.reshape(-1, PANEL, pairs.shape[1]).transpose(0, 2, 1))


@compiled
def _split(first, last, rows, parts):  # type: ignore[no-untyped-def]
    """Rows first .. last of float32 [rows, inputs] as bits of bfloat16 [2, rows, inputs], high and low."""
    for row in range(first, last):
        given, high, low = rows[row], parts[0, row], parts[1, row]
        for place in range(len(given)):
            near = narrow(given[place])
            high[place] = np.uint16(near)
            low[place] = np.uint16(narrow(given[place] - wide(near)))
