"""The weight a linear should have so that errors made upstream cancel: least squares on the inputs it sees.

Quantization error propagation (QEP, arXiv 2504.09629), docs/maths.md, Corrected targets. Knows no grid and no widths.
"""

import copy

import torch
from torch import Tensor

from hubplugin.kernels.second_moments import PreparedInputs, half_precision, products_of, token_sum, zero_sum
from hubplugin.methods import linear_algebra
from hubplugin.methods.linear_algebra import Prepared


class TargetCorrection:
    """The QEP cross term of a linear W whose input is x: sum (y~ - W x) x^T over tokens.

    y~ is the base's output: W x~ of its input x~ and, for an output projection, the error of the residual stream that
    the output is added to. For other linears the sum is kept without W: sum (x~ - x) x^T.
    """

    def __init__(self, weight: Tensor, projects: bool, means: bool = False) -> None:
        """W [outputs, inputs] of the base; whether it is an output projection; whether `on_average` will be called."""
        self.tokens = 0
        self._weight, self._projects, self._means = weight, projects, means
        self._narrow = weight  # in the dtype of the inputs
        self._sum: Tensor | None = None
        self._error: Tensor | float = 0.0  # sums over tokens: of the error y~ - W x (or x~ - x), and of x
        self._inputs: Tensor | float = 0.0

    def add(self, x: Tensor | PreparedInputs, base: Tensor, residual_error: Tensor | None = None) -> None:
        """Add tokens: x [..., inputs], the base's [..., inputs], the error of the residual stream [..., outputs]."""
        prepared = x if isinstance(x, PreparedInputs) else PreparedInputs().take(x)
        rows = prepared.rows
        error = base.reshape(rows.shape).to(rows.dtype) - rows
        if self._projects:
            error = self._outputs(error, None if residual_error is None else residual_error.reshape(len(rows), -1))
        self.tokens += len(rows)
        if self._means:
            self._error, self._inputs = self._error + token_sum(error), self._inputs + token_sum(rows)
        if self._sum is None:
            self._sum = zero_sum(rows, error.shape[1])
        prepared.add_product(self._sum, error)

    def _outputs(self, inputs: Tensor, added: Tensor | None) -> Tensor:
        """W x of inputs [tokens, inputs], in their dtype, and what is added to it [tokens, outputs]."""
        if self._narrow.dtype != inputs.dtype:
            self._narrow = self._weight.to(inputs.dtype)
        with products_of(half_precision(inputs)):  # what differs is small: three digits of it are enough
            outputs = inputs @ self._narrow.T
            return outputs if added is None else outputs.add_(added)

    def on_columns(self, columns: Tensor) -> "TargetCorrection":
        """As if x had these inputs alone, int64 [kept], and W the best repair of what that loses."""
        kept = copy.copy(self)
        if self._sum is not None:
            kept._sum = self._sum[:, columns]
        return kept

    def on_average(self, weight: Tensor, columns: Tensor | None) -> Tensor:
        """Sum over tokens of y~ - W' x [outputs], where `weight` W' stands for W on these columns of x, or on all."""
        assert isinstance(self._error, Tensor) and isinstance(self._inputs, Tensor)
        inputs = self._inputs if columns is None else self._inputs[columns]
        error = self._error if self._projects else self._weight @ self._error
        return error + self._weight @ self._inputs - weight.to(inputs) @ inputs

    def sum(self, factor: float = 1.0) -> Tensor:
        """The sum [..., inputs] times a factor, in the form it is kept in; see `cross_term`."""
        assert self._sum is not None
        return self._sum * factor

    def cross_term(self, kept_sum: Tensor, step: int = 1) -> Tensor:
        """[outputs, inputs] of every `step`-th output, from `sum` or a linear function of the sum."""
        if self._projects:
            return kept_sum[::step]
        with products_of(half_precision(kept_sum)):  # what differs is small: three digits of it are enough
            return self._weight[::step] @ kept_sum


def corrected(
    weight: Tensor, prepared: Prepared, fit: TargetCorrection, check: TargetCorrection
) -> tuple[Tensor, float]:
    """The corrected target T [outputs, inputs] in place of W, and the share a of the correction in it.

    T = W + a D with D = sum (y~ - W x) x^T (H + damping)^-1, the least-squares answer to outputs y~ of the base. The
    cross term comes from the tokens of `fit`; a is what is best on those of `check`, in closed form and between 0 and
    1, or 0.5 without any; at most LOSS_ROWS outputs decide it. H is `prepared`'s, of the tokens of both.
    """
    tokens, order = fit.tokens + check.tokens, prepared.order
    solution = linear_algebra.divided(fit.sum(tokens / fit.tokens)[:, order], prepared.factor)
    correction = fit.cross_term(solution.index_select(1, order.argsort()))
    ratio = 0.5
    if check.tokens:
        step = linear_algebra.spaced(len(correction))
        gain = linear_algebra.inner(check.cross_term(check.sum(tokens / check.tokens), step), correction[::step])
        size = linear_algebra.energy(correction[::step], prepared.alive)
        ratio = min(max(gain / size, 0.0), 1.0) if size > 0 else 0.0
    return weight + ratio * correction, ratio


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
