"""Products of float32 or bfloat16 matrices, summed in float32, on a CPU whose libraries do not use all of it.

torch's library for float32 products, MKL, uses registers of 256 bits on AMD's processors, and torch has no float32
result of bfloat16 products. Here a weight is packed into panels once while it lives, and `avx512` does the rest: on two
Zen 5 cores at more than twice MKL's rate (`python bench/kernel_rates.py`). Knows matrices and linears; no model.
"""

from functools import cache

import numpy as np
import torch
from llvmlite import binding
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from hubplugin.kernels.instructions import avx512
from hubplugin.kernels.instructions.avx512 import LANES, PANEL, TALL
from hubplugin.kernels.instructions.bits import numbers
from hubplugin.kernels.threads import compiled, spread

FEWEST = 32  # rows below which packing costs more than it gains


class Packed:
    """A weight [outputs, inputs] as the kernel reads it."""

    def __init__(self, weight: Tensor) -> None:
        self.version = _version(weight)
        self.whole = len(weight) // PANEL * PANEL  # outputs that fill panels
        units = numbers(weight[: self.whole].contiguous()).view(np.uint32)
        self.panels = np.empty((self.whole // PANEL, units.shape[1], PANEL), dtype=np.uint32)
        spread(_pack, len(self.panels), units, self.panels)


class PanelLinear(nn.Linear):
    """A linear, in float32 or bfloat16. What does not fit is torch's own product."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs [..., outputs] of inputs [..., inputs], in their dtype."""
        rows = inputs.flatten(0, -2)
        rounded_once = self.bias is None or inputs.dtype == torch.float32
        if not (rounded_once and fits(rows, self.weight)):
            return super().forward(inputs)
        made = product(rows, self.weight, torch.empty(len(rows), len(self.weight), dtype=inputs.dtype))
        if self.bias is not None:
            made += self.bias
        return made.unflatten(0, inputs.shape[:-1])


def install(module: nn.Module) -> None:
    """Let the linears inside a module multiply here, where this CPU gains by it."""
    if not works():
        return
    for inner in module.modules():
        if type(inner) is nn.Linear:
            inner.__class__ = PanelLinear


def fits(rows: Tensor, weight: Tensor) -> bool:
    """Whether a product of rows [rows, inputs] and a weight [outputs, inputs] is taken here."""
    alike = rows.dtype == weight.dtype and rows.dtype in (torch.float32, torch.bfloat16)
    here = all(each.device.type == "cpu" and not learns(each) for each in (rows, weight))
    return alike and here and len(rows) >= FEWEST and len(weight) >= PANEL and weight.shape[1] % 2 == 0 and works()


def learns(tensor: Tensor) -> bool:
    """Whether a gradient is wanted, which no kernel here has."""
    return tensor.requires_grad and torch.is_grad_enabled()


def product(rows: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """rows weight^T of float32 or bfloat16, summed in float32 and written to `out` [rows, outputs].

    That is float32, or bfloat16 of bfloat16. A weight is packed once while it lives and stays as it is.
    """
    packed: Packed | None = _PACKED.get(weight)
    if packed is None or packed.version != _version(weight):
        _PACKED[weight] = packed = Packed(weight)
    single = rows.dtype == torch.float32
    spread(avx512.multiply, len(rows), numbers(rows.contiguous()), packed.panels, single, numbers(out), least=TALL)
    if packed.whole < len(weight):
        out[:, packed.whole :] = rows @ weight[packed.whole :].T
    return out


_PACKED = WeakIdKeyDictionary()  # of weights, for tensors are equal by element


def _version(weight: Tensor) -> tuple[int, int]:
    """Changes with a weight's numbers or memory; of a tensor made in inference mode torch counts no changes."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


@compiled
def _pack(first, last, units, panels):  # type: ignore[no-untyped-def]
    """Panels first .. last of units [outputs, units]."""
    for panel in range(first, last):
        rows, made = units[panel * PANEL : (panel + 1) * PANEL], panels[panel]
        for start in range(0, units.shape[1], LANES):
            for unit in range(start, min(start + LANES, units.shape[1])):
                for lane in range(PANEL):
                    made[unit, lane] = rows[lane, unit]


@cache
def works() -> bool:
    """Whether this CPU has the instructions, at a rate worth it, and sums as it should. Tried out once.

    Processors of Intel multiply bfloat16 at half of float32's rate where they hide their matrix unit, and MKL uses all
    of them in float32.
    """
    if not (binding.get_host_cpu_name().startswith("znver") and binding.get_host_cpu_features().get("avx512bf16")):
        return False
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randn(count, 128, generator=generator) for count in (FEWEST + 1, PANEL + 1))
    return all(_right(rows.to(dtype), weight.to(dtype)) for dtype in (torch.float32, torch.bfloat16))


def _right(rows: Tensor, weight: Tensor) -> bool:
    made = product(rows, weight, torch.empty(len(rows), len(weight)))[:, :PANEL]
    exact = rows.double() @ weight[:PANEL].double().T
    return bool((made - exact).abs().max() <= 2**-20 * exact.abs().max())
