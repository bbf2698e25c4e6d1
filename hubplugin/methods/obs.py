"""Structured pruning of a consumer's input columns: choose by OBS, refit the rest by least squares.

Optimal Brain Surgeon for groups of columns as in ZipLM (arXiv 2302.04089), docs/maths.md, Pruning. Knows no FFN and no
heads: it drops input columns of one linear, alone or so many side by side, and says which.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import Columns
from hubplugin.errors import CompressError
from hubplugin.manifest.steps.prune import Prune
from hubplugin.methods import linear_algebra
from hubplugin.methods.base import Compressed

BATCH = 32  # columns removed between two re-scorings
PROTECTED = 0.001  # ratio of columns never removed one by one: the most energetic carry outliers and attention sinks


@dataclass(frozen=True)
class Cut:
    """How many units of input columns stay."""

    columns: int  # of a unit, side by side
    keep: int  # units that stay
    segments: int = 1  # equal stretches of units, which all lose the same number


def compress(weight: Tensor, hessian: Tensor, settings: Prune, cuts: Sequence[Cut], batch: int = BATCH) -> Compressed:
    """Drop input columns of weight [outputs, inputs], cut by cut; the rest of the weight compensates.

    The refit is exact least squares on the kept inputs: W_F = W H_{:,F} H_FF^-1. Computes in float32, or float64
    where the weight is float64. Raises CompressError where H stays singular under the damping.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    kept = torch.arange(work.shape[1], device=work.device)
    for cut in cuts:
        _check(cut, len(kept))
    alive, dead = linear_algebra.without_dead(hessian.to(work.dtype))
    work = torch.where(dead, 0, work)
    damped = linear_algebra.damped(alive, settings.damp)
    left = work
    for cut in cuts:  # each is scored on what the ones before it have left, repaired
        state = _State.of(left, damped[kept][:, kept])
        *_, (stays, _) = path(state, cut, [cut.keep], batch)
        kept, left = kept[stays], state.weight
    refit = linear_algebra.solve(damped[kept][:, kept], work @ damped[:, kept], "prune")
    return Compressed(
        weight=refit,
        encoding=Columns(kept),
        loss=loss(work, refit, kept, alive),
        damp=settings.damp,
        fallback=None,
        dead_inputs=int(dead.sum()),
    )


def curve(
    weight: Tensor, hessian: Tensor, settings: Prune, cut: Cut, stops: Sequence[int], batch: int = BATCH
) -> list[tuple[Tensor, float]]:
    """For falling numbers of units that stay: which columns, and the relative loss of the best repair.

    One walk down to the last stop; what stays at a stop is part of what stayed at those before it.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    alive, dead = linear_algebra.without_dead(hessian.to(work.dtype))
    work = torch.where(dead, 0, work)
    damped = linear_algebra.damped(alive, settings.damp)
    original = linear_algebra.inner(work @ damped, work)
    state = _State.of(work, damped)
    return [(kept, error / original if original > 0 else 0.0) for kept, error in path(state, cut, stops, batch)]


def repaired(weight: Tensor, hessian: Tensor, settings: Prune, kept: Tensor) -> Tensor:
    """The weight [outputs, inputs] that makes the best of the kept columns, with zeros in the others."""
    damped = linear_algebra.damped(linear_algebra.without_dead(hessian)[0], settings.damp)
    out = torch.zeros_like(weight)
    out[:, kept] = linear_algebra.solve(damped[kept][:, kept], weight @ damped[:, kept], "prune")
    return out


def _check(cut: Cut, inputs: int) -> None:
    units = inputs // cut.columns
    if not 0 < cut.keep <= units or inputs % cut.columns or units % cut.segments or cut.keep % cut.segments:
        what = f"cannot keep {cut.keep} units of {cut.columns} of {inputs} columns"
        raise CompressError("prune", what, "this is a bug; please report it")


@dataclass
class _State:
    """Columns that are left, their repaired weight and the inverse of their second moments."""

    kept: Tensor  # int64 [columns]
    weight: Tensor  # [outputs, columns]
    inverse: Tensor  # [columns, columns]
    energy: Tensor  # [columns], of the inputs

    @staticmethod
    def of(weight: Tensor, damped: Tensor) -> "_State":
        kept = torch.arange(weight.shape[1], device=weight.device)
        return _State(kept, weight, linear_algebra.inverse(damped, "prune"), damped.diagonal())

    def costs(self, columns: int) -> Tensor:
        """tr(W_P [(H^-1)_PP]^-1 W_P^T) for every unit P of so many columns: what its best repair still loses."""
        if columns == 1:
            return self.weight.square().sum(dim=0) / self.inverse.diagonal()
        units = len(self.kept) // columns
        index = torch.arange(units, device=self.kept.device)
        blocks = self.inverse.reshape(units, columns, units, columns)[index, :, index, :]
        by_unit = self.weight.reshape(-1, units, columns).permute(1, 2, 0)  # [units, columns, outputs]
        costs: Tensor = (by_unit * torch.linalg.solve(blocks, by_unit)).sum(dim=(1, 2))
        return costs

    def remove(self, removed: Tensor) -> None:
        """Drop columns (bool mask) and repair: W_F -= W_P [(H^-1)_PP]^-1 (H^-1)_PF, and likewise for H^-1."""
        stays = ~removed
        repair = torch.linalg.solve(self.inverse[removed][:, removed], self.inverse[removed][:, stays])
        self.weight = self.weight[:, stays] - self.weight[:, removed] @ repair
        self.inverse = self.inverse[stays][:, stays] - self.inverse[stays][:, removed] @ repair
        self.kept, self.energy = self.kept[stays], self.energy[stays]

    def error(self, removed: Tensor) -> float:
        """What dropping these columns (bool mask) costs, all of them together."""
        columns = self.weight[:, removed]
        return float((columns.T * torch.linalg.solve(self.inverse[removed][:, removed], columns.T)).sum())


def path(state: _State, cut: Cut, stops: Sequence[int], batch: int) -> Iterator[tuple[Tensor, float]]:
    """Drop the cheapest units, repair, score again; at each of the falling `stops`, what is left and what it cost."""
    error, protected = 0.0, _protected(state.energy, cut)
    units = len(state.kept) // cut.columns
    for stop in stops:
        while units > stop:
            costs = state.costs(cut.columns)
            if protected is not None:
                costs[protected[state.kept]] = torch.inf
            count = min(max(1, batch // cut.columns // cut.segments), (units - stop) // cut.segments)
            lowest = costs.reshape(cut.segments, -1).argsort(dim=1, stable=True)[:, :count]
            removed = torch.zeros(cut.segments, units // cut.segments, dtype=torch.bool, device=costs.device)
            removed = removed.scatter(1, lowest, value=True).reshape(-1).repeat_interleave(cut.columns)
            error += state.error(removed)
            state.remove(removed)
            units -= count * cut.segments
        yield state.kept, error


def _protected(energy: Tensor, cut: Cut) -> Tensor | None:
    """Mask [columns] of those that stay in any case, where columns go one by one."""
    count = min(round(PROTECTED * len(energy)), cut.keep)
    if cut.columns > 1 or not count:
        return None
    return torch.zeros_like(energy, dtype=torch.bool).scatter(0, energy.topk(count).indices, value=True)


def loss(before: Tensor, after: Tensor, kept: Tensor, hessian: Tensor) -> float:
    """Relative loss of a weight [outputs, kept] that stands for one of [outputs, inputs]."""
    widened = torch.zeros_like(before)
    widened[:, kept] = after
    return linear_algebra.relative_loss(before, widened, hessian)
