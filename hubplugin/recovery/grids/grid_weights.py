"""What is trained of a quantized module: scales, norms and biases; codes stay, or move by one where they are searched.

All that is trained is relative: start + unit * change (docs/maths.md, Tuning). Knows a quantized folder's tensors.
Knows no loss and no order of blocks.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hubplugin.checkpoint import formats
from hubplugin.checkpoint.dense_view import DenseView, ReplacedWeights
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
from hubplugin.checkpoint.weight_source import WeightSource
from hubplugin.recovery.grids.grid_linear import GridLinear, GridStart, InTraining
from hubplugin.recovery.optimizers import Optimizers, adam, with_rounding

SCALES = ("scales", "weight_scale")  # the last parts of stored scales' names
# how far a weight may lie from its code at first, in steps: half of the way to the next code, because GPTQ has pushed
# many weights to the edge of their cell and beyond, where the first noisy step would send them all over
INSIDE = 0.25
TRAVEL = 1.0  # steps of the grid that an offset may go in a whole training


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
        self.module, self._folder, self._replaced = module.requires_grad_(False), folder, dict(replaced or {})
        self._prefix = f"{prefix}." if prefix else ""
        self._device = next(module.parameters()).device
        self._start = {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.dim() == 1}
        self._unit = {name: weight.square().mean().sqrt() for name, weight in self._start.items()}
        self.trained = {name: nn.Parameter(torch.zeros_like(weight)) for name, weight in self._start.items()}
        self._view = ReplacedWeights(folder, self._replaced)
        names = [name for name in self._view.quantized if name.startswith(self._prefix)]
        self._linears = {name.removeprefix(self._prefix): self._linear(name, dense) for name in names}

    def _linear(self, name: str, dense: WeightSource | None) -> InTraining:
        """A linear that is to multiply by its codes: the module loses its dense weight."""
        start, inside = _start(self._view, name, dense, self._device), name.removeprefix(self._prefix)
        change, offset = nn.Parameter(torch.zeros_like(start.scales)), None
        self.trained[f"{inside}.scale"] = change
        if start.between is not None:
            offset = nn.Parameter(torch.zeros(start.codes.shape, device=self._device))
            self.trained[f"{inside}.rounding"] = offset
        made = InTraining(start, change, offset)
        module = self.module.get_submodule(inside)
        module.weight = nn.Parameter(torch.empty(start.codes.shape, device="meta"), requires_grad=False)
        module.__class__, module.in_training = GridLinear, made  # type: ignore[assignment]
        return made

    def optimizers(self, rate: float, steps: int) -> Optimizers:
        """AdamW for scales, norms and biases; for offsets of the rounding steps of one length."""
        offsets = {name: weight for name, weight in self.trained.items() if name.endswith(".rounding")}
        rest = {name: weight for name, weight in self.trained.items() if name not in offsets}
        return with_rounding(rest, rate, offsets, 2 * TRAVEL / max(1, steps)) if offsets else adam(rest, rate)

    def weights(self) -> dict[str, Tensor]:
        """As `Trainable`: norms and biases, rounded as they would be stored; linears make theirs as they need it."""
        found = {}
        for name, start in self._start.items():
            exact = start + self._unit[name] * self.trained[name]
            stored = exact.detach().to(TORCH_DTYPES[self._view.headers[f"{self._prefix}{name}"].dtype])
            found[name] = exact + (stored.float() - exact.detach())  # gradients pass straight through
        return found

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """As `Trainable`: scales of the file's format, codes where they may move, norms and biases."""
        found = self.weights()
        for name, linear in self._linears.items():
            full, grid = f"{self._prefix}{name}", linear.start.grid(linear.change, linear.offset)
            parts = formats.tensors(grid, formats.layout(self._view.headers, full), self._scale_dtype(full))
            kept = SCALES if linear.offset is None else (*SCALES, *formats.CODES)
            found |= {f"{name}.{part}": tensor for part, tensor in parts.items() if part in kept}
        return found

    def _scale_dtype(self, full: str) -> torch.dtype:
        headers = self._view.headers
        return next(TORCH_DTYPES[headers[f"{full}.{part}"].dtype] for part in SCALES if f"{full}.{part}" in headers)

    def dense(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Trainable`: what any reader of the folder makes of it with these tensors in it."""
        changed = {f"{self._prefix}{name}": tensor for name, tensor in stored.items()}
        view = ReplacedWeights(self._folder, {**self._replaced, **changed})
        names = [*self._start, *(f"{name}.weight" for name in self._linears)]
        return {name: view.get(f"{self._prefix}{name}").to(self._device, torch.float32) for name in names}


def _start(view: DenseView, name: str, dense: WeightSource | None, device: torch.device) -> GridStart:
    """Where a linear's training starts."""
    grid = view.grid(name)
    zeros = torch.full_like(grid.scales, 2 ** (grid.bits - 1)) if grid.zeros is None else grid.zeros
    between = None
    if dense is not None:
        weight = dense.get(f"{name}.weight").float().reshape(*grid.scales.shape, -1)
        steps = weight / grid.scales.float()[..., None] + zeros.float()[..., None]
        steps = steps.reshape(grid.codes.shape) - grid.codes
        between = steps.clamp(-INSIDE, INSIDE).to(device, torch.float16)
    return GridStart(
        codes=grid.codes.to(device),
        scales=grid.scales.to(device, torch.float32),
        zeros=zeros.to(device, torch.float32),
        bits=grid.bits,
        group_size=grid.group_size,
        symmetric=grid.zeros is None,
        between=between,
    )


def moved_codes(folder: Path, replaced: Mapping[str, Tensor]) -> float:
    """The ratio of a folder's codes that differ once some of its tensors are replaced."""
    before, after = DenseView(folder), ReplacedWeights(folder, replaced)
    moved = total = 0
    for name in before.quantized:
        one, other = before.grid(name).codes, after.grid(name).codes
        moved, total = moved + int((one != other).sum()), total + one.numel()
    return moved / max(1, total)
