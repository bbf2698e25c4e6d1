"""Structured pruning of a consumer's input columns: choose by OBS, refit the rest by least squares.

Optimal Brain Surgeon for groups of columns as in ZipLM (arXiv 2302.04089), docs/maths.md, Pruning. Knows no FFN and no
heads: it drops input columns of one linear and says which.
"""

import torch
from torch import Tensor

from hubplugin import hessian as moments
from hubplugin.errors import CompressError
from hubplugin.manifest import Prune
from hubplugin.methods.base import Columns, Compressed

BATCH = 32  # columns removed between two re-scorings


def compress(weight: Tensor, hessian: Tensor, settings: Prune, keep: int, batch: int = BATCH) -> Compressed:
    """Keep `keep` of the input columns of weight [outputs, inputs]; the rest of the weight makes up for the lost ones.

    The refit is exact least squares on the kept inputs: W_F = W H_{:,F} H_FF^-1. Computes in float32, or float64
    where the weight is float64. Raises CompressError where H stays singular under the damping.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    if not 0 < keep <= work.shape[1]:
        raise CompressError(
            "prune", f"cannot keep {keep} of {work.shape[1]} columns", "this is a bug; please report it"
        )
    alive, dead = moments.without_dead(hessian.to(work.dtype))
    work = torch.where(dead, 0, work)
    damped = moments.damped(alive, settings.damp)
    kept = _select(work, damped, keep, batch)
    refit = moments.solve(damped[kept][:, kept], work @ damped[:, kept], "prune")
    return Compressed(
        weight=refit,
        encoding=Columns(kept),
        loss=_loss(work, refit, kept, alive),
        damp=settings.damp,
        fallback=None,
        dead_inputs=int(dead.sum()),
    )


def _select(weight: Tensor, hessian: Tensor, keep: int, batch: int) -> Tensor:
    """Indices [keep], ascending. Greedy: drop the columns whose best repair costs least, repair, score again.

    score_c = |W_c|^2 / (H^-1)_cc; dropping a set P costs tr(W_P [(H^-1)_PP]^-1 W_P^T) and leaves
    W_F -= W_P [(H^-1)_PP]^-1 (H^-1)_PF on the kept ones.
    """
    inverse = moments.inverse(hessian, "prune")
    weight = weight.clone()
    kept = torch.arange(weight.shape[1], device=weight.device)
    while len(kept) > keep:
        scores = weight.square().sum(dim=0) / inverse.diagonal()
        lowest = scores.argsort(stable=True)[: min(batch, len(kept) - keep)]
        stays = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
        stays[lowest] = False
        gone = ~stays
        repair = torch.linalg.solve(inverse[gone][:, gone], inverse[gone][:, stays])
        weight = weight[:, stays] - weight[:, gone] @ repair
        inverse = inverse[stays][:, stays] - inverse[stays][:, gone] @ repair
        kept = kept[stays]
    return kept


def _loss(before: Tensor, after: Tensor, kept: Tensor, hessian: Tensor) -> float:
    widened = torch.zeros_like(before)
    widened[:, kept] = after
    return moments.relative_loss(before, widened, hessian)
