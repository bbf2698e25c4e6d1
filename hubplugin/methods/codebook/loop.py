"""GPTQ's sweep over columns with the nearest of a few levels in place of a grid, in plain torch.

The reference that the compiled inner loop is held against, and what float64 and devices run. Knows a factor and levels;
no second moments, no model, no file, no order of columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hubplugin.methods.gptq.loop import fully_updated
from hubplugin.methods.linear_algebra import Factor

BLOCK = 128  # columns between two matrix products, of groups that are longer

# (number of the group, its fully updated weights [outputs, n], importance [n]) -> ascending levels [outputs, count]
Fit = Callable[[int, Tensor, Tensor], Tensor]


class Snap(Protocol):
    """What quantizes a block of columns, all transposed: targets and weights [n, outputs] -> codes, errors."""

    def __call__(
        self, target: Tensor, columns: Tensor, upper: Tensor, levels: Tensor, codes: Tensor, errors: Tensor
    ) -> None: ...


@dataclass(frozen=True)
class Swept:
    """The result of a sweep, in the order in which columns were visited."""

    codes: Tensor  # uint8 [inputs, outputs]
    levels: Tensor  # float [groups, outputs, count]


def snap(target: Tensor, columns: Tensor, upper: Tensor, levels: Tensor, codes: Tensor, errors: Tensor) -> None:
    """Codes and errors [n, outputs] of a block of columns, each feeding its error to the later ones; fills both.

    `target` [n, outputs] holds the columns with the error feedback of all earlier blocks, and is overwritten; `upper`
    is the factor's part for this block [n, n]; `levels` [outputs, count] are ascending. A target in the middle of two
    levels goes to the lower one.
    """
    between = (levels[:, 1:] + levels[:, :-1]) / 2
    for column in range(len(columns)):
        code = (target[column][:, None] > between).sum(dim=1)
        codes[column] = code.to(torch.uint8)
        errors[column] = columns[column] - levels.gather(1, code[:, None])[:, 0]
        if column + 1 < len(columns):
            target[column + 1 :] += torch.outer(upper[column, column + 1 :], errors[column])


def sweep(columns: Tensor, factor: Factor, importance: Tensor, group: int, fit: Fit, snap: Snap = snap) -> Swept:
    """Quantize columns [inputs, outputs] one after another, each feeding its error to the ones not yet done.

    As `gptq.loop.sweep`: a group of `group` columns collects the error feedback of all earlier ones, `fit` gives its
    levels for the fully updated weights, weighed by `importance` [inputs], and blocks of it are snapped to them.
    """
    upper = factor.unit_upper
    errors, codes = torch.zeros_like(columns), torch.empty_like(columns, dtype=torch.uint8)
    found = []
    for number, start in enumerate(range(0, len(columns), group)):
        stop, inside = start + group, slice(start, start + group)
        feedback = upper[:start, inside].T @ errors[:start]
        updated = fully_updated(columns[inside], feedback, upper[inside, inside]) if start else columns[inside]
        levels = fit(number, updated.T, importance[inside])
        found.append(levels)
        for first in range(start, stop, BLOCK):
            block = slice(first, min(first + BLOCK, stop))
            target = columns[block] + feedback[first - start : block.stop - start]
            if first > start:
                target += upper[start:first, block].T @ errors[start:first]
            snap(target, columns[block], upper[block, block], levels, codes[block], errors[block])
    return Swept(codes, torch.stack(found))


def values(codes: Tensor, levels: Tensor) -> Tensor:
    """The columns [inputs, outputs] that codes stand for, with levels [groups, outputs, count]."""
    groups, outputs, _ = levels.shape
    grouped = codes.view(groups, -1, outputs).long()
    return levels.transpose(1, 2).gather(1, grouped).view(codes.shape)
