"""What is trained of a quantized module: scales, norms and biases; codes stay, or move by one where they are searched.

A weight follows from its codes, scale * (code - zero), and gradients reach scales and offsets of the rounding through
it (docs/maths.md, Tuning). What is trained is relative: start + unit * change. Knows a quantized folder's tensors.
Knows no loss and no order of blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from hubplugin.checkpoint import encodings, formats
from hubplugin.checkpoint.dense_view import DenseView, ReplacedWeights
from hubplugin.checkpoint.encodings import Grid
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
from hubplugin.checkpoint.weight_source import WeightSource
from hubplugin.methods.gptq.grid import storable
from hubplugin.recovery.optimizers import Optimizers, adam, with_rounding

SCALES = ("scales", "weight_scale")  # the last parts of stored scales' names
INSIDE = 0.49  # how far a weight may lie from its code at first, in steps: below half, so that it rounds to that code
TRAVEL = 1.0  # steps of the grid that an offset may go in a whole training


@dataclass(frozen=True)
class Linear:
    """A quantized linear at the start of its training, on the device."""

    codes: Tensor  # uint8 [outputs, inputs]
    scales: Tensor  # float32 [outputs, groups]
    zeros: Tensor  # float32 [outputs, groups]
    bits: int
    group_size: int
    symmetric: bool
    layout: str  # of its file format
    scale_dtype: torch.dtype  # as stored
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


class _Weight(torch.autograd.Function):
    """scale * (code - zero) [outputs, inputs]; rounding of scales and of codes is passed straight through."""

    @staticmethod
    def forward(ctx: Any, change: Tensor, offset: Tensor | None, linear: Linear) -> Tensor:
        scale, codes = linear.scale(change), linear.moved(offset)
        ctx.save_for_backward(scale, codes)
        ctx.linear, ctx.rounds = linear, offset is not None
        return encodings.expanded(codes, scale, linear.zeros)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor | None, None]:
        scale, codes = ctx.saved_tensors
        linear = cast(Linear, ctx.linear)
        gradient = upstream[0].reshape(*scale.shape, -1)
        steps = codes.to(scale.dtype).reshape(gradient.shape) - linear.zeros[..., None]
        change = (gradient * steps).sum(-1) * linear.scales
        if not ctx.rounds:
            return change, None, None
        return change, (gradient * scale[..., None]).reshape(codes.shape), None


class GridWeights:
    """A module of a quantized folder in training. `prefix` is its path there, empty for the whole model.

    `replaced` are tensors in place of some of the folder's, by full name. With `dense`, the weights before
    quantization, codes are rounded again between them. Raises CheckpointError where a linear is on no grid of ours.
    """

    def __init__(
        self,
        module: nn.Module,
        folder: Path,
        prefix: str = "",
        dense: WeightSource | None = None,
        replaced: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.module, self._folder = module.requires_grad_(False), folder
        self._prefix = f"{prefix}." if prefix else ""
        self._device = next(module.parameters()).device
        self._replaced = dict(replaced or {})
        view = ReplacedWeights(folder, self._replaced)
        self._linears = {
            name.removeprefix(self._prefix): self._linear(view, name, dense)
            for name in view.quantized
            if name.startswith(self._prefix)
        }
        self._start = {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.dim() == 1}
        self._unit = {name: weight.square().mean().sqrt().nan_to_num() for name, weight in self._start.items()}
        self.trained = {name: nn.Parameter(torch.zeros_like(weight)) for name, weight in self._start.items()}
        for name, linear in self._linears.items():
            module.get_submodule(name).weight = nn.Parameter(torch.empty(linear.codes.shape, device="meta"), False)
            self.trained[f"{name}.scale"] = nn.Parameter(torch.zeros_like(linear.scales))
            if linear.between is not None:
                self.trained[f"{name}.rounding"] = nn.Parameter(torch.zeros(linear.codes.shape, device=self._device))

    def _linear(self, view: DenseView, name: str, dense: WeightSource | None) -> Linear:
        grid = view.grid(name)
        symmetric = grid.zeros is None
        zeros = torch.full_like(grid.scales, 2 ** (grid.bits - 1)) if grid.zeros is None else grid.zeros
        layout = formats.layout(view.headers, name)
        stored = next(view.headers[f"{name}.{part}"] for part in SCALES if f"{name}.{part}" in view.headers)
        between = None
        if dense is not None:
            weight = dense.get(f"{name}.weight").float().reshape(*grid.scales.shape, -1)
            steps = weight / grid.scales.float()[..., None] + zeros.float()[..., None]
            steps = steps.reshape(grid.codes.shape) - grid.codes
            between = steps.clamp(-INSIDE, INSIDE).to(self._device, torch.float16)
        return Linear(
            codes=grid.codes.to(self._device),
            scales=grid.scales.to(self._device, torch.float32),
            zeros=zeros.to(self._device, torch.float32),
            bits=grid.bits,
            group_size=grid.group_size,
            symmetric=symmetric,
            layout=layout,
            scale_dtype=TORCH_DTYPES[stored.dtype],
            between=between,
        )

    def optimizers(self, rate: float, steps: int) -> Optimizers:
        """AdamW for scales, norms and biases; for offsets of the rounding steps of one length."""
        offsets = {name: weight for name, weight in self.trained.items() if name.endswith(".rounding")}
        rest = {name: weight for name, weight in self.trained.items() if name not in offsets}
        return with_rounding(rest, rate, offsets, 2 * TRAVEL / max(1, steps)) if offsets else adam(rest, rate)

    def weights(self) -> dict[str, Tensor]:
        """As `Trainable`: linears from codes, norms and biases from their changes."""
        found = {name: self._vector(name) for name in self._start}
        for name, linear in self._linears.items():
            change, offset = self.trained[f"{name}.scale"], self.trained.get(f"{name}.rounding")
            found[f"{name}.weight"] = cast(Tensor, _Weight.apply(change, offset, linear))
        return found

    def _vector(self, name: str) -> Tensor:
        return self._start[name] + self._unit[name] * self.trained[name]

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """As `Trainable`: scales of the file's format, codes where they may move, norms and biases."""
        found = {name: self._vector(name) for name in self._start}
        for name, linear in self._linears.items():
            grid = linear.grid(self.trained[f"{name}.scale"], self.trained.get(f"{name}.rounding"))
            parts = formats.tensors(grid, linear.layout, linear.scale_dtype)
            kept = SCALES if linear.between is None else (*SCALES, *formats.CODES, "weight")
            found |= {f"{name}.{part}": tensor for part, tensor in parts.items() if part in kept}
        return found

    def dense(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Trainable`: what any reader of the folder makes of it with these tensors in it."""
        changed = {f"{self._prefix}{name}": tensor for name, tensor in stored.items()}
        view = ReplacedWeights(self._folder, {**self._replaced, **changed})
        names = [*self._start, *(f"{name}.weight" for name in self._linears)]
        return {name: view.get(f"{self._prefix}{name}").to(self._device, torch.float32) for name in names}


def moved_codes(folder: Path, replaced: Mapping[str, Tensor]) -> float:
    """The ratio of a folder's codes that differ once some of its tensors are replaced."""
    before, after = DenseView(folder), ReplacedWeights(folder, replaced)
    moved = total = 0
    for name in before.quantized:
        one, other = before.grid(name).codes, after.grid(name).codes
        moved, total = moved + int((one != other).sum()), total + one.numel()
    return moved / max(1, total)
