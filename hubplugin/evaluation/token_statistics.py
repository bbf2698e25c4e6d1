"""What is computed from logits: one function per token and one over all tokens, by key of a metric.

Perplexity is exp of the mean negative log-likelihood (natural log) over windows. KL(base || variant) is taken per
predicted position over the whole vocabulary: unlike perplexity it also sees changes that happen to cancel. Knows logits
and tokens; no model and no folder.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hubplugin.kernels import logit_rows
from hubplugin.kernels.logit_rows import Alone, Compared
from hubplugin.report import Quality


@dataclass(frozen=True)
class LogitsPiece:
    """Logits at consecutive positions that predict a token."""

    logits: Tensor  # float32 [positions, vocabulary]
    ids: Tensor  # int64 [positions], the tokens that follow
    base_logits: Tensor | None = None  # float32 [positions, vocabulary]; None: nothing is compared with the base

    @cached_property
    def compared(self) -> Compared:
        """How far the rows of both are apart, computed once for all statistics."""
        assert self.base_logits is not None
        return logit_rows.compared(self.base_logits, self.logits)

    @cached_property
    def alone(self) -> Alone:
        """What the rows of the logits are on their own."""
        return logit_rows.alone(self.logits) if self.base_logits is None else self.compared.q


def negative_log_likelihood(piece: LogitsPiece) -> Tensor:
    """-log p(token that follows) in nats, float64 [positions]."""
    followed = piece.logits.gather(-1, piece.ids.to(piece.logits.device)[:, None])[:, 0]
    return piece.alone.log_sum - followed.double()


def kl_from_base(piece: LogitsPiece) -> Tensor:
    """KL(base || variant) in nats, float64 [positions]."""
    return piece.compared.divergence


def same_top1(piece: LogitsPiece) -> Tensor:
    """Whether both rank the same token first, bool [positions]."""
    return piece.compared.p.first == piece.compared.q.first


def flipped(piece: LogitsPiece) -> Tensor:
    """Whether one of both ranks the token first that follows, and the other does not, bool [positions]."""
    ids = piece.ids.to(piece.logits.device)
    return (piece.compared.p.first == ids) != (piece.compared.q.first == ids)


def acceptance(piece: LogitsPiece) -> Tensor:
    """The probability that the base accepts a token drafted by the variant: sum of min(p, q), float64 [positions]."""
    return piece.compared.overlap


@dataclass(frozen=True)
class Statistic:
    """How a number of `Quality` is computed."""

    per_token: Callable[[LogitsPiece], Tensor]  # -> [positions]
    over_tokens: Callable[[Tensor], float]  # [windows, positions of a window] -> the number
    needs_base: bool = False


def _window_means(losses: Tensor) -> Tensor:
    return losses.mean(dim=1).cpu()


def perplexity(losses: Tensor) -> float:
    """exp of the mean loss; `losses` are negative log-likelihoods [windows, positions]."""
    return math.exp(float(_window_means(losses).mean()))


def perplexity_stderr(losses: Tensor) -> float:
    """The standard error of the perplexity by the delta method; NaN for a single window."""
    return perplexity(losses) * stderr_over_windows(losses)


def stderr_over_windows(values: Tensor) -> float:
    """The standard error of the mean of values [windows, positions], windows being the independent samples.

    NaN for a single window.
    """
    means = _window_means(values)
    return float(means.std() / math.sqrt(len(means))) if len(means) > 1 else float("nan")


def _ratio(holds: Tensor) -> float:
    return int(holds.sum()) / holds.numel()


STATISTICS = {
    "perplexity": Statistic(negative_log_likelihood, perplexity),
    "perplexity_stderr": Statistic(negative_log_likelihood, perplexity_stderr),
    "mean_kl": Statistic(kl_from_base, lambda kl: float(kl.mean()), needs_base=True),
    "mean_kl_stderr": Statistic(kl_from_base, stderr_over_windows, needs_base=True),
    "p99_kl": Statistic(kl_from_base, lambda kl: float(kl.flatten().quantile(0.99)), needs_base=True),
    "top1_agreement": Statistic(same_top1, _ratio, needs_base=True),
    "flips": Statistic(flipped, _ratio, needs_base=True),
    "acceptance_rate": Statistic(acceptance, lambda overlap: min(1.0, float(overlap.mean())), needs_base=True),
}


class TokenValues:
    """The values per token of all statistics, gathered piece by piece."""

    def __init__(self, against_base: bool) -> None:
        self._statistics = {key: row for key, row in STATISTICS.items() if against_base or not row.needs_base}
        self._values: dict[Callable[[LogitsPiece], Tensor], list[Tensor]] = {
            row.per_token: [] for row in self._statistics.values()
        }

    def add(self, piece: LogitsPiece) -> None:
        """Take in the next positions. Each function is called once, however many statistics are made of it."""
        for per_token, values in self._values.items():
            values.append(per_token(piece))

    def quality(self, windows: int) -> Quality:
        """All statistics of what was taken in, which must be `windows` windows of equal length, one after another."""
        tokens = {per_token: torch.cat(values).reshape(windows, -1) for per_token, values in self._values.items()}
        return Quality.model_validate(
            {key: row.over_tokens(tokens[row.per_token]) for key, row in self._statistics.items()}
        )
