"""What a linear should be instead, so that errors made upstream are made up for: least squares on the inputs it sees.

Quantization error propagation (QEP, arXiv 2504.09629), docs/maths.md, Corrected targets. Knows no grid and no widths.
"""

import copy

import torch
from torch import Tensor

from hubplugin.kernels.second_moments import PreparedInputs, half_precision, products_of, token_sum, zero_sum
from hubplugin.methods import linear_algebra
from hubplugin.methods.linear_algebra import Prepared


class TargetCorrection:
    """What a linear W owes where it is given x: sum (y~ - W x) x^T over tokens.

    y~ is what the base made: W x~ with its own input x~, and, for the end of a part, what the stream that the output is
    added to has lost so far. Elsewhere the sum is kept without W: sum (x~ - x) x^T.
    """

    def __init__(self, weight: Tensor, ends: bool, averages: bool = False) -> None:
        """W [outputs, inputs], which the base has too; whether it is an end; whether `on_average` will be asked."""
        self.tokens = 0
        self._weight, self._ends, self._averages = weight, ends, averages
        self._narrow = weight  # in the dtype of the inputs
        self._sum: Tensor | None = None
        self._missing: Tensor | float = 0.0  # sums over tokens: of what is owed, and of x
        self._inputs: Tensor | float = 0.0

    def add(self, x: Tensor | PreparedInputs, base: Tensor, lost: Tensor | None = None) -> None:
        """Add tokens: x [..., inputs], the base's [..., inputs], for an end what was lost [..., outputs]."""
        seen = x if isinstance(x, PreparedInputs) else PreparedInputs().take(x)
        rows = seen.rows
        missing = base.reshape(rows.shape).to(rows.dtype) - rows
        if self._ends:
            missing = self._made(missing, None if lost is None else lost.reshape(len(rows), -1))
        self.tokens += len(rows)
        if self._averages:
            self._missing, self._inputs = self._missing + token_sum(missing), self._inputs + token_sum(rows)
        if self._sum is None:
            self._sum = zero_sum(rows, missing.shape[1])
        seen.add_product(self._sum, missing)

    def _made(self, inputs: Tensor, lost: Tensor | None) -> Tensor:
        """What W makes of inputs [tokens, inputs], in their dtype, and what was lost."""
        if self._narrow.dtype != inputs.dtype:
            self._narrow = self._weight.to(inputs.dtype)
        with products_of(half_precision(inputs)):  # what differs is small: three digits of it are enough
            made = inputs @ self._narrow.T
            return made if lost is None else made.add_(lost)

    def on_columns(self, columns: Tensor) -> "TargetCorrection":
        """As if x had these inputs alone, int64 [kept], and W the best repair of what that loses."""
        kept = copy.copy(self)
        if self._sum is not None:
            kept._sum = self._sum[:, columns]
        return kept

    def on_average(self, made: Tensor, columns: Tensor | None) -> Tensor:
        """What is still owed [outputs], summed over tokens, where `made` stands for W on these columns of x, or all."""
        assert isinstance(self._missing, Tensor) and isinstance(self._inputs, Tensor)
        seen = self._inputs if columns is None else self._inputs[columns]
        missing = self._missing if self._ends else self._weight @ self._missing
        return missing + self._weight @ self._inputs - made.to(seen) @ seen

    def sum(self, share: float = 1.0) -> Tensor:
        """The sum times a share; `owed` makes of it what W owes, of it or of what it became [..., inputs]."""
        assert self._sum is not None
        return self._sum * share

    def owed(self, found: Tensor, every: int = 1) -> Tensor:
        """[outputs, inputs] for every `every`-th output."""
        if self._ends:
            return found[::every]
        with products_of(half_precision(found)):  # what differs is small: three digits of it are enough
            return self._weight[::every] @ found


def corrected(
    weight: Tensor, prepared: Prepared, fit: TargetCorrection, check: TargetCorrection
) -> tuple[Tensor, float]:
    """The weight to have instead of W, so that errors made upstream are made up for, and how much of it was taken.

    T = W + a D with D = sum (y~ - W x) x^T (H + damping)^-1, the least-squares answer to outputs y~ of the base. What
    is owed comes from the tokens of `fit`; a is what is best on those of `check`, in closed form and between 0 and 1,
    or 0.5 without any; some of the outputs decide it. H is `prepared`'s, of the tokens of both.
    """
    every, order = fit.tokens + check.tokens, prepared.order
    found = linear_algebra.divided(fit.sum(every / fit.tokens)[:, order], prepared.factor)
    step = fit.owed(found.index_select(1, order.argsort()))
    share = 0.5
    if check.tokens:
        some = linear_algebra.spaced(len(step))
        gain = linear_algebra.inner(check.owed(check.sum(every / check.tokens), some), step[::some])
        size = linear_algebra.energy(step[::some], prepared.alive)
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
