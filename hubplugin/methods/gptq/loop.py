"""GPTQ's sweep over columns in plain torch: the reference that the compiled sweeps are held against.

Runs in float64 too, where the compiled ones do not. Knows a factor and a grid; no model, no file, no order of columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hubplugin.checkpoint import encodings
from hubplugin.methods.gptq import grid
from hubplugin.methods.gptq.grid import Spec
from hubplugin.methods.linear_algebra import Factor

CHUNK = 32  # columns that feed each other one by one; their error feedback to the rest of the group is one product


@dataclass(frozen=True)
class Swept:
    """The result of a sweep, all transposed, in the order in which columns were visited."""

    codes: Tensor  # uint8 [inputs, outputs]
    scales: Tensor  # float [groups, outputs]
    zeros: Tensor  # float [groups, outputs]


def sweep(columns: Tensor, factor: Factor, importance: Tensor, spec: Spec, chunk: int = CHUNK) -> Swept:
    """Quantize columns [inputs, outputs] one after another, each feeding its error to the ones not yet done.

    `importance` [inputs] weighs the columns when scales are fitted. Left-looking: a group first collects the
    error feedback of all earlier columns (one product), fits its scales to the fully updated weights, then goes chunk
    by chunk. `chunk` changes the speed, never the codes.
    """
    upper, group = factor.unit_upper, spec.group_size
    errors = torch.zeros_like(columns)  # original minus quantized
    codes = torch.empty_like(columns, dtype=torch.uint8)
    scales, zeros = [], []
    for start in range(0, len(columns), group):
        inside = slice(start, start + group)
        feedback = upper[:start, inside].T @ errors[:start]
        updated = fully_updated(columns[inside], feedback, upper[inside, inside]) if start else columns[inside]
        scale, zero = grid.fit(updated.T, importance[inside], spec)
        scales.append(scale)
        zeros.append(zero)
        for first in range(start, start + group, chunk):
            last = min(first + chunk, start + group)
            target = columns[first:last] + feedback[first - start : last - start]
            target += upper[start:first, first:last].T @ errors[start:first]
            for column in range(first, last):
                code = grid.codes(target[column - first], scale, zero, spec.top)
                codes[column] = code.to(torch.uint8)
                errors[column] = columns[column] - encodings.values(code, scale, zero)
                if column + 1 < last:
                    target[column + 1 - first :] += torch.outer(upper[column, column + 1 : last], errors[column])
    return Swept(codes, torch.stack(scales), torch.stack(zeros))


def fully_updated(columns: Tensor, feedback: Tensor, upper: Tensor) -> Tensor:
    """The weights [group, outputs] GPTQ would aim at if this group were not quantized at all: W + M^-T feedback.

    Scales are fitted to these, not to the original weights: they are what will be snapped.
    """
    eye = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
    inverse: Tensor = torch.linalg.solve_triangular(upper.T, eye, upper=False, unitriangular=True)
    return columns + inverse @ feedback
