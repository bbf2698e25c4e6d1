"""GPTQ's sweep where an output's rounding error is fed to later outputs too, by second moments of output gradients.

With H_O = sum g g^T of the loss's gradients g at a linear's outputs, tr(H_O E H E^T) is what the predictions mind of an
error E (the Kronecker-factored Fisher information of YAQA, arXiv 2505.22988; docs/maths.md, Errors across outputs). The
sweep in plain torch is the reference that the compiled one is held against. Knows factors and a grid; no model, no
module and no file.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hubplugin.checkpoint import encodings
from hubplugin.methods import linear_algebra
from hubplugin.methods.gptq import grid
from hubplugin.methods.gptq.grid import Spec
from hubplugin.methods.gptq.loop import Swept, fully_updated
from hubplugin.methods.linear_algebra import Factor

DAMP = 2.0  # relative to the mean diagonal of H_O; see docs/maths.md


class OutputFactor(NamedTuple):
    """How an error of one output of a linear feeds the others."""

    order: Tensor  # int64 [outputs], in which outputs are visited: by falling energy of their gradients
    unit_upper: Tensor  # [outputs, outputs], of H_O in that order; see `linear_algebra.Factor`


def factored(moments: Tensor) -> OutputFactor:
    """Order and factor second moments [outputs, outputs] of the gradients at a linear's outputs."""
    order = moments.diagonal().argsort(descending=True, stable=True)
    return OutputFactor(order, linear_algebra.factor(moments, DAMP, order).unit_upper)


class Stacked(NamedTuple):
    """The factors of linears that are stacked by rows: no linear's error feeds another's."""

    order: Tensor  # int64 [outputs], of the whole stack
    parts: tuple[tuple[slice, Tensor], ...]  # where a linear's outputs lie in that order, and its factor

    @classmethod
    def of(cls, factors: Sequence[OutputFactor]) -> "Stacked":
        """Of factors in the order of the stack."""
        parts, orders, first = [], [], 0
        for order, unit_upper in factors:
            parts.append((slice(first, first + len(order)), unit_upper))
            orders.append(order + first)
            first += len(order)
        return cls(torch.cat(orders), tuple(parts))

    def cpu(self) -> "Stacked":
        """The same in the CPU's memory."""
        return Stacked(self.order.cpu(), tuple((rows, unit_upper.cpu()) for rows, unit_upper in self.parts))


def in_places(swept: Swept, stacked: Stacked) -> Swept:
    """A sweep over outputs in their order, with the outputs back in their places."""
    places = stacked.order.argsort()
    return Swept(*(part.index_select(1, places) for part in (swept.codes, swept.scales, swept.zeros)))


def sweep(columns: Tensor, factor: Factor, importance: Tensor, spec: Spec, stacked: Stacked) -> Swept:
    """Quantize columns [inputs, outputs] one after another, and in each its outputs one after another.

    Outputs are in the order of `stacked`. With R the errors of a column against its targets, and A the factor of H_O,
    the target of output i is that of `loop.sweep` and sum over earlier outputs j of A_ji R_j. Scales are those that
    `loop.sweep` would fit behind the same errors.
    """
    upper, group = factor.unit_upper, spec.group_size
    errors = torch.zeros_like(columns)  # original minus quantized
    codes = torch.empty_like(columns, dtype=torch.uint8)
    scales, zeros = [], []
    for column in range(len(columns)):
        feedback = upper[:column, column] @ errors[:column]
        if column % group == 0:
            inside = slice(column, column + group)
            of_group = upper[:column, inside].T @ errors[:column]
            scale, zero = grid.fit(
                fully_updated(columns[inside], of_group, upper[inside, inside]).T, importance[inside], spec
            )
            scales.append(scale)
            zeros.append(zero)
        target = columns[column] + feedback
        for rows, across in stacked.parts:
            aimed = target[rows].clone()
            for place, row in enumerate(range(rows.start, rows.stop)):
                code = grid.codes(aimed[place], scale[row], zero[row], spec.top)
                value = encodings.values(code, scale[row], zero[row])
                codes[column, row] = code.to(torch.uint8)
                errors[column, row] = columns[column, row] - value
                aimed[place + 1 :] += across[place, place + 1 :] * (target[row] - value)
    return Swept(codes, torch.stack(scales), torch.stack(zeros))
