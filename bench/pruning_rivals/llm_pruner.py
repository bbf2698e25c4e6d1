"""LLM-Pruner's first-order Taylor score, element by element: |weight times gradient|, summed over a unit (2305.11627).

Its block-wise mode: FFN channels and heads, the same share in every layer that is pruned, the ends of the model left
whole. Without its recovery by LoRA: no method here is trained afterwards.
"""

import torch
from torch import Tensor, nn

from pruning_rivals import choose, magnitude
from pruning_rivals.calibration import Calibration
from pruning_rivals.parts import Shape


def prune(
    model: nn.Module,
    calibration: Calibration,
    keep: int,
    spare_ends: bool = True,
    everywhere: bool = False,
) -> None:
    """Remove the units of lowest importance in every layer, in every layer but the first and the last, or wherever."""
    shape = Shape.of(model)
    channels, groups = scores(model, calibration)
    if everywhere:
        kept = choose.everywhere(shape, *choose.densities(shape, channels, groups), shape.all - keep)
    else:
        kept = choose.uniform(shape, channels, groups, shape.all - keep, spare_ends=spare_ends)
    choose.cut(model, kept)


def scores(model: nn.Module, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """Importance of channels and of KV groups."""
    gradients = calibration.gradients()
    rows = []
    for index, layer in enumerate(model.model.layers):
        values = {
            name: (weight * gradients[f"model.layers.{index}.{name}.weight"]).abs()
            for name, weight in magnitude.weights(layer)
        }
        rows.append(magnitude.sums(layer, values))
    channels, groups = zip(*rows, strict=True)
    return torch.stack(channels), torch.stack(groups)
