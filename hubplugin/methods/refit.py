"""What a linear should be instead, so that errors made upstream are made up for: least squares on the inputs it sees.

Quantization error propagation (QEP, arXiv 2504.09629), docs/maths.md, Corrected targets. Knows no grid and no widths.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hubplugin import hessian as moments
from hubplugin.hessian import Drift


@dataclass(frozen=True)
class Prepared:
    """Second moments, an order in which columns are visited, and the factor of these."""

    alive: Tensor  # second moments [inputs, inputs], with 1 on the diagonal of dead inputs
    dead: Tensor  # bool [inputs]
    order: Tensor  # int64 [inputs]
    factor: moments.Factor


def prepare(hessian: Tensor, damp: float) -> Prepared:
    """Factor second moments [inputs, inputs] of the dtype to compute in, columns as they stand."""
    alive, dead = moments.without_dead(hessian)
    order = torch.arange(len(alive), device=alive.device)
    return Prepared(alive, dead, order, moments.factor(alive, damp, order))


def corrected(weight: Tensor, prepared: Prepared, fit: Drift, check: Drift) -> tuple[Tensor, float]:
    """The weight to have instead of W, so that errors made upstream are made up for, and how much of it was taken.

    T = W + a D with D = sum (y~ - W x) x^T (H + damping)^-1, the least-squares answer to outputs y~ of the base. What
    is owed comes from the tokens of `fit`; a is what is best on those of `check`, in closed form and between 0 and 1,
    or 0.5 without any; some of the outputs decide it. H is `prepared`'s, of the tokens of both.
    """
    every, order = fit.tokens + check.tokens, prepared.order
    found = moments.divided(fit.sum(every / fit.tokens)[:, order], prepared.factor)
    step = fit.owed(found.index_select(1, order.argsort()))
    share = 0.5
    if check.tokens:
        some = moments.spaced(len(step))
        gain = moments.inner(check.owed(check.sum(every / check.tokens), some), step[::some])
        size = moments.energy(step[::some], prepared.alive)
        share = min(max(gain / size, 0.0), 1.0) if size > 0 else 0.0
    return weight + share * step, share


def stored(target: Tensor, plain: Tensor, hessian: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [outputs, inputs] to store in place of a target: row by row rounded to `dtype`, or `plain` as it is.

    `plain` is the weight before anything was fitted, exact in `dtype`. Rounding costs tr(R H R^T) with R what it
    changes, about what 8-bit codes cost; a row whose fit gains less than that keeps what it was.
    """
    rounded = target.to(dtype).to(target.dtype)
    gains = _energies(plain - target, hessian) > _energies(rounded - target, hessian)
    return torch.where(gains[:, None], rounded, plain)


def _energies(weight: Tensor, hessian: Tensor) -> Tensor:
    """w H w^T of every row."""
    return ((weight @ hessian) * weight).sum(dim=1)
