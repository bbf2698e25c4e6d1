"""A linear whose weight follows from codes: gradients reach its scales and the offsets of its rounding, not its weight.

weight = scale * (code - zero); rounding is passed straight through (docs/maths.md, Tuning). What is saved for the
backward pass are codes: the weight is made from them once more there. Knows tensors of one linear. Knows no folder.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hubplugin.checkpoint import encodings
from hubplugin.checkpoint.encodings import Grid
from hubplugin.methods.gptq.grid import storable


@dataclass(frozen=True)
class GridStart:
    """A quantized linear at the start of its training, on the device."""

    codes: Tensor  # uint8 [outputs, inputs]
    scales: Tensor  # float32 [outputs, groups]
    zeros: Tensor  # float32 [outputs, groups]
    bits: int
    group_size: int
    symmetric: bool
    between: Tensor | None = None  # float16 [outputs, inputs]: the dense weight less its code, in steps; None: fixed

    def scale(self, change: Tensor) -> Tensor:
        """The scales as they would be stored, float32, after a relative change."""
        return storable(self.scales * (1 + change))

    def moved(self, offset: Tensor | None) -> Tensor:
        """The codes after offsets [outputs, inputs] of at most half a step: each by one at most, inside the grid."""
        if offset is None or self.between is None:
            return self.codes
        steps = (self.between.float() + offset).round_()
        return steps.add_(self.codes).clamp_(0, 2**self.bits - 1).to(torch.uint8)

    def grid(self, change: Tensor, offset: Tensor | None) -> Grid:
        """The grid as it would be stored, on the CPU."""
        zeros = None if self.symmetric else self.zeros.to("cpu", torch.uint8)
        scales = self.scale(change).to("cpu", torch.float16)
        return Grid(self.moved(offset).cpu(), scales, self.bits, self.group_size, zeros)


@dataclass(frozen=True)
class InTraining:
    """What is trained of a quantized linear, and where it started."""

    start: GridStart
    change: nn.Parameter  # float32 [outputs, groups], relative, of the scales
    offset: nn.Parameter | None  # float32 [outputs, inputs], of the rounding; None: codes are fixed

    def product(self, inputs: Tensor) -> Tensor:
        """inputs [..., inputs] -> [..., outputs]."""
        return cast(Tensor, _Product.apply(inputs, self.change, self.offset, self.start))


class GridLinear(nn.Linear):
    """A linear that multiplies by what it has in training while it has no weight of its own."""

    in_training: InTraining  # not registered: the module's parameters keep their names

    def forward(self, inputs: Tensor) -> Tensor:
        """As nn.Linear."""
        if not self.weight.is_meta:
            return super().forward(inputs)
        product = self.in_training.product(inputs)
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """x Wᵀ with W = scale * (code - zero)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, change: Tensor, offset: Tensor | None, start: GridStart) -> Tensor:
        scale, codes = start.scale(change), start.moved(offset)
        ctx.save_for_backward(inputs, scale, codes)
        ctx.start, ctx.rounds = start, offset is not None
        ctx.lower = torch.is_autocast_enabled(inputs.device.type)
        return nn.functional.linear(inputs, encodings.expanded(codes, scale, start.zeros))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        inputs, scale, codes = ctx.saved_tensors
        start, rows = cast(GridStart, ctx.start), upstream[0].flatten(0, -2)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=ctx.lower):
            back = rows @ encodings.expanded(codes, scale, start.zeros)
            gradient = rows.T @ inputs.flatten(0, -2)
        gradient = gradient.float().reshape(*scale.shape, -1)
        steps = codes.to(scale.dtype).reshape(gradient.shape) - start.zeros[..., None]
        change = (gradient * steps).sum(-1) * start.scales
        offset = (gradient * scale[..., None]).reshape(codes.shape) if ctx.rounds else None
        return back.reshape(inputs.shape).to(inputs.dtype), change, offset, None
