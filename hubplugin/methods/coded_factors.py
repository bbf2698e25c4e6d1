"""Codes for two factors: each is a linear of its own, with second moments of its own, and B makes up for A's codes.

W' = B A. A reads x and is quantized under x's second moments H; B is fitted to the codes of A and reads A x, whose
second moments are A H A^T (docs/maths.md, Low rank). Factors in, codes out: knows no module and no file.
"""

import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import CodedFactors, Grid, LowRank
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.methods import linear_algebra, lowrank
from hubplugin.methods.base import Compressed, solver_of
from hubplugin.methods.linear_algebra import Prepared


def compress(
    weight: Tensor, factors: LowRank, settings: GridQuantization, whitening: Prepared, columns: Prepared | None = None
) -> Compressed:
    """Quantize both factors of a weight [outputs, inputs].

    `whitening` is what `lowrank.prepare` made of the second moments, `columns` what the quantizer's `prepare` did, if
    it is known already. Computes in float32, or float64 where the weight is float64. Raises CompressError where the
    second moments of A x stay singular.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    solver = solver_of(settings)
    a = solver.compress(factors.a.to(work.dtype), whitening.alive, settings, columns)
    moments = a.weight @ whitening.alive @ a.weight.T
    b = solver.compress(lowrank.fitted(work, a.weight, whitening), (moments + moments.T) / 2, settings)
    assert isinstance(a.encoding, Grid) and isinstance(b.encoding, Grid)
    encoding = CodedFactors(b.encoding, a.encoding)
    dense = encoding.dense()
    return Compressed(
        weight=dense,
        encoding=encoding,
        loss=linear_algebra.relative_loss(work, dense.to(work.dtype), whitening.alive),
        damp=max(a.damp, b.damp),
        fallback="; ".join(filter(None, (a.fallback, b.fallback))) or None,
        dead_inputs=int(whitening.dead.sum()),
    )
