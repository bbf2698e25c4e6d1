"""EoRA (Liu et al., arXiv 2410.21271): two factors that make up for a weight's error under second moments.

B A has the least tr((D - B A) H (D - B A)^T) of all matrices of its rank, where D is what a compressed weight lacks of
its target (docs/maths.md, Adapters). The decomposition is that of lowrank.py. Knows no module and no file.
"""

import torch
from torch import Tensor

from hubplugin.manifest.steps.adapter import Eora
from hubplugin.methods import linear_algebra, lowrank
from hubplugin.methods.base import Compressed
from hubplugin.methods.linear_algebra import Prepared


def prepare(hessian: Tensor, settings: Eora) -> Prepared:
    """Factor second moments [inputs, inputs] of the dtype to compute in; linears that share an input share it."""
    return linear_algebra.prepare(hessian, settings.damp)


def compress(
    target: Tensor,
    hessian: Tensor,
    settings: Eora,
    prepared: Prepared | None = None,
    *,
    compressed: Tensor,
    stored: torch.dtype = torch.float32,
) -> Compressed:
    """Factors B [outputs, rank] and A [rank, inputs] that bring `compressed` [outputs, inputs] nearer to its target.

    Both are rounded to `stored`. The result's weight is `compressed` + B A, its loss that of this sum, which stays
    what it was without factors where `compressed` lacks nothing. Raises ValueError for a rank that is none.
    """
    work = target if target.dtype == torch.float64 else target.float()
    prepared = prepared or prepare(hessian.to(work.dtype), settings)
    base = compressed.to(work.dtype)
    factors = lowrank.factors(work - base, prepared, settings.rank, stored)
    weight = base + factors.dense().to(work.dtype)
    return Compressed(
        weight=weight,
        encoding=factors,
        loss=linear_algebra.relative_loss(work, weight, prepared.alive),
        damp=prepared.factor.damp,
        fallback=prepared.factor.fallback,
        dead_inputs=int(prepared.dead.sum()),
    )
