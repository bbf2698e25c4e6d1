"""Weight sharing: GPTQ's sweep with the nearest centroid for a grid, centroids by k-means and least squares.

SqueezeLLM's k-means (Kim et al., arXiv 2306.07629) with second moments in place of Fisher information, and GPTVQ's
error feedback in one dimension (van Baalen et al., arXiv 2402.15319); docs/maths.md, Codebooks. Weight in, codes out:
knows no module, no file and no device.
"""

import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import Codebook, Fp4
from hubplugin.manifest.steps.codebook import Codebook as Settings
from hubplugin.methods import linear_algebra
from hubplugin.methods.base import Compressed
from hubplugin.methods.codebook import fp4, kmeans, loop, loop_cpu
from hubplugin.methods.codebook import refit as least_squares
from hubplugin.methods.codebook.loop import Fit, Swept
from hubplugin.methods.gptq import gptq
from hubplugin.methods.linear_algebra import Prepared

prepare = gptq.prepare  # the same order of columns and the same factor


def compress(weight: Tensor, hessian: Tensor, settings: Settings, prepared: Prepared | None = None) -> Compressed:
    """Share the values of weight [outputs, inputs] under second moments [inputs, inputs].

    Computes in float32, or float64 where the weight is float64. `prepared` is `prepare`'s for the same second moments,
    group size, order and damping. Columns are visited as GPTQ does and return to their places.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    shared = prepared or prepare(hessian.to(work.dtype), settings)
    order, factor = shared.order, shared.factor
    if bool(shared.dead.any()):
        work = work.masked_fill(shared.dead, 0)
    group = settings.group(work.shape[1])
    columns, importance = gptq.to_columns(work, order), shared.alive.diagonal()[order]
    divisor = fp4.divisor_of(work)
    free = settings.values == "free"
    if free:
        swept = _free(columns, shared, importance, group, settings)
    else:
        swept = _sweep(columns, factor, importance, group, lambda _, some, weigh: fp4.fit(some, weigh, divisor))
    groups = (order[::group] // group).argsort()
    codes, levels = gptq.to_rows(swept.codes, order), swept.levels[groups].transpose(0, 1).contiguous()
    if free:
        encoding: Codebook | Fp4 = Codebook(codes, levels.to(torch.float16), settings.bits)
    else:
        encoding = Fp4(fp4.codes_of(codes), fp4.scales_of(levels, divisor), divisor)
    dense = encoding.dense()
    return Compressed(
        weight=dense,
        encoding=encoding,
        loss=linear_algebra.relative_loss(work, dense.to(work.dtype), hessian.to(work.dtype)),
        damp=factor.damp,
        fallback=factor.fallback,
        dead_inputs=int(shared.dead.sum()),
    )


def _sweep(columns: Tensor, factor: linear_algebra.Factor, importance: Tensor, group: int, fit: Fit) -> Swept:
    """By the compiled inner loop where it takes these columns."""
    snap = loop_cpu.snap if gptq.on_cpu(columns) else loop.snap
    return loop.sweep(columns, factor, importance, group, fit, snap)


def _free(columns: Tensor, shared: Prepared, importance: Tensor, group: int, settings: Settings) -> Swept:
    """k-means, a sweep, and as often as the settings say a refit; a sweep between two. Each row keeps its best."""

    def clustered(_: int, weight: Tensor, weigh: Tensor) -> Tensor:
        return kmeans.fit(weight, weigh, 2**settings.bits)

    best = _sweep(columns, shared.factor, importance, group, clustered)
    if not settings.refits:
        return best
    damped = linear_algebra.damped(shared.alive, shared.factor.damp)
    hessian = damped.index_select(0, shared.order).index_select(1, shared.order)
    del damped
    best, loss = least_squares.refit(columns, hessian, best)
    for _ in range(1, settings.refits):
        known = best.levels.sort(dim=2).values

        def refitted(number: int, weight: Tensor, weigh: Tensor, known: Tensor = known) -> Tensor:
            return known[number]

        swept = _sweep(columns, shared.factor, importance, group, refitted)
        swept, lost = least_squares.refit(columns, hessian, swept)
        better = lost < loss
        loss = torch.where(better, lost, loss)
        codes = torch.where(better, swept.codes, best.codes)
        best = Swept(codes, torch.where(better[:, None], swept.levels, best.levels))
    return best
