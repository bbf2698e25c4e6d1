"""The weight a linear should have so that errors made upstream cancel: least squares on the inputs it sees.

Quantization error propagation (QEP, arXiv 2504.09629), docs/maths.md, Corrected targets. Knows no grid and no widths.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from hubplugin.kernels import products
from hubplugin.kernels.second_moments import PreparedInputs, token_sum, zero_sum
from hubplugin.methods import linear_algebra
from hubplugin.methods.linear_algebra import Factor, Prepared

# relative to the mean diagonal of H: what upstream errors have in common lies in few strong directions of the inputs,
# chance lies in all of them, and a damping above the weak ones keeps it out
DAMPINGS = (0.1, 0.3, 1.0)


class TargetCorrection:
    """The QEP cross term of a linear W whose input is x: sum (y~ - W x) x^T over tokens.

    y~ is the base's output: W x~ of its input x~ and, for an output projection, the error of the residual stream that
    the output is added to. For other linears the sum is kept without W: sum (x~ - x) x^T.
    """

    def __init__(self, weight: Tensor, projects: bool, means: bool = False) -> None:
        """W [outputs, inputs] of the base; whether it is an output projection; whether `on_average` will be called."""
        self.tokens, self.mass = 0, 0.0  # how many, and the sum of what they were multiplied by
        self._weight, self._projects, self._means = weight, projects, means
        self._narrow = weight  # in the dtype of the inputs
        self._sum: Tensor | None = None
        self._error: Tensor | float = 0.0  # sums over tokens: of the error y~ - W x (or x~ - x), and of x
        self._inputs: Tensor | float = 0.0

    def add(
        self,
        x: Tensor | PreparedInputs,
        base: Tensor,
        residual_error: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        """Add tokens: x [..., inputs], the base's [..., inputs], the error of the residual stream [..., outputs].

        `scale` [..., 1] is what all three of each token were multiplied by; None: by 1.
        """
        prepared = x if isinstance(x, PreparedInputs) else PreparedInputs().take(x)
        rows = prepared.rows
        error = base.reshape(rows.shape).to(rows.dtype) - rows
        if self._projects:
            error = self._outputs(error, None if residual_error is None else residual_error.reshape(len(rows), -1))
        self.tokens += len(rows)
        self.mass += len(rows) if scale is None else float(scale.sum())
        if self._means:
            self._error, self._inputs = self._error + token_sum(error), self._inputs + token_sum(rows)
        if self._sum is None:
            self._sum = zero_sum(rows, error.shape[1])
        prepared.add_product(self._sum, error)

    def _outputs(self, inputs: Tensor, added: Tensor | None) -> Tensor:
        """W x of inputs [tokens, inputs], in their dtype, and what is added to it [tokens, outputs]."""
        if self._narrow.dtype != inputs.dtype:
            self._narrow = self._weight.to(inputs.dtype)
        outputs = products.rough(inputs, self._narrow)  # what differs is small: three digits of it are enough
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

    def sum(self, factor: float = 1.0, step: int = 1) -> Tensor:
        """The sum [..., inputs] times a factor, in the form it is kept in, as far as `cross_term` needs it."""
        assert self._sum is not None
        return (self._sum[::step] if self._projects else self._sum) * factor

    def cross_term(self, kept_sum: Tensor, step: int = 1) -> Tensor:
        """[outputs, inputs] of every `step`-th output, from their `sum` or a linear function of its columns."""
        return kept_sum if self._projects else products.rough(self._weight[::step], kept_sum.T)


def corrected(
    weight: Tensor, prepared: Prepared, fit: TargetCorrection, check: TargetCorrection
) -> tuple[Tensor, float]:
    """The corrected target T [outputs, inputs] in place of W, and the share a of the correction in it.

    T = W + a D with D = sum (y~ - W x) x^T (H + damping)^-1, the least-squares answer to outputs y~ of the base. The
    cross term comes from the tokens of `fit`; the damping, `prepared`'s or one of DAMPINGS, and a are what is best on
    those of `check`, a in closed form and between 0 and 1; without any: `prepared`'s, and 0.5. At most LOSS_ROWS
    outputs decide. H is `prepared`'s, of the tokens of both.
    """
    tokens = fit.tokens + check.tokens

    def solution(factor: Factor, step: int = 1) -> Tensor:
        """D [outputs, inputs] of every `step`-th output, by a factor of H."""
        of_outputs = fit.sum(tokens / fit.tokens, step)[:, prepared.order]
        return fit.cross_term(
            linear_algebra.divided(of_outputs, factor).index_select(1, prepared.order.argsort()), step
        )

    if not check.tokens:
        return weight + 0.5 * solution(prepared.factor), 0.5
    step = linear_algebra.spaced(len(weight))
    checked = check.cross_term(check.sum(tokens / check.tokens, step), step)
    best, most, ratio = prepared.factor, 0.0, 0.0
    for factor in _factors(prepared):
        correction = solution(factor, step)
        gain = linear_algebra.inner(checked, correction)
        size = linear_algebra.energy(correction, prepared.alive)
        share = min(max(gain / size, 0.0), 1.0) if size > 0 else 0.0
        if (gained := share * (2 * gain - share * size)) > most:
            best, most, ratio = factor, gained, share
        elif most:  # gains rise to one damping and fall behind it: in all 119 groups of SmolLM2-135M
            break
    return (weight + ratio * solution(best), ratio) if ratio else (weight, 0.0)


def _factors(prepared: Prepared) -> Iterator[Factor]:
    """Factors of H, with the damping that it was prepared with and with stronger ones."""
    yield prepared.factor
    for damp in DAMPINGS:
        if damp > prepared.factor.damp:
            yield linear_algebra.factor(prepared.alive, damp, prepared.order)


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
