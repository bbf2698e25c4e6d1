"""What may follow GPTQ's sweep: coordinate descent over codes and a refit of scales, in plain torch.

The reference that the compiled form is held against, and what float64 and devices run. Both steps only ever lower
tr((W - Q) H (W - Q)^T). Knows second moments and a grid; no model, no file, no order of columns.
"""

import torch
from torch import Tensor

from hubplugin.checkpoint import encodings
from hubplugin.methods.gptq import grid
from hubplugin.methods.gptq.loop import Swept


def descend(columns: Tensor, hessian: Tensor, swept: Swept, top: int, move: bool, refit: bool) -> None:
    """Improve the result of a sweep of columns [inputs, outputs], in place, group by group.

    `hessian` [inputs, inputs] are the second moments that the sweep followed, damping included, in its order.

    `move`: each code in turn goes to its optimum while all others stay (coordinate descent as in QuantEase, arXiv
    2309.01885, and CDQuant, arXiv 2406.17542). `refit`: each scale then goes to the least-squares answer for its codes,
    rounded to what is stored.
    """
    group, errors = len(columns) // len(swept.scales), quantization_error(columns, swept)
    for number, (scale, zero) in enumerate(zip(swept.scales, swept.zeros, strict=True)):
        inside = slice(number * group, (number + 1) * group)
        square = hessian[inside, inside]
        gradient = hessian[inside] @ errors
        code = swept.codes[inside].to(columns.dtype)
        if move:
            _move(code, gradient, square, errors[inside], scale, top)
            swept.codes[inside] = code.to(torch.uint8)
        if refit:
            steps = code - zero
            errors[inside] -= refitted(steps, gradient, square, scale) * steps


def quantization_error(columns: Tensor, swept: Swept) -> Tensor:
    """Columns [inputs, outputs] minus what the codes stand for."""
    group = len(columns) // len(swept.scales)
    groups = zip(torch.split(columns, group), torch.split(swept.codes, group), swept.scales, swept.zeros, strict=True)
    errors = [column - encodings.values(code.to(column.dtype), scale, zero) for column, code, scale, zero in groups]
    return torch.cat(errors)


def _move(code: Tensor, gradient: Tensor, square: Tensor, errors: Tensor, scale: Tensor, top: int) -> None:
    """Codes [group, outputs] (as floats), their gradient H (W - Q) and errors, changed in place."""
    for column in range(len(code)):
        optimum = code[column] + gradient[column] / (square[column, column] * scale)
        moved = optimum.round_().clamp_(0, top)
        change = scale * (moved - code[column])
        code[column] = moved
        errors[column] -= change
        gradient -= torch.outer(square[:, column], change)


def refitted(steps: Tensor, gradient: Tensor, square: Tensor, scale: Tensor) -> Tensor:
    """Changes scale [outputs] in place where that lowers the loss; returns by how much.

    For steps [group, outputs] = code - zero the loss changes by d (d c^T H c - 2 c^T H e) when a scale changes by d.
    """
    pull, curve = (gradient * steps).sum(dim=0), (steps * (square @ steps)).sum(dim=0)
    change = grid.storable(scale + torch.where(curve > 0, pull / curve, 0)) - scale
    change = torch.where(change * (2 * pull - change * curve) > 0, change, 0)
    scale += change
    return change
