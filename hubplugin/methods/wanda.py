"""Wanda (Sun et al., arXiv 2306.11695): set the weights to zero whose size times that of their input is least.

No factor, no update: what is kept stays as it is. Weight in, weight out: knows no module, no file and no device.
"""

import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import Masked
from hubplugin.manifest.steps.masks import Wanda
from hubplugin.methods import linear_algebra
from hubplugin.methods.base import Compressed
from hubplugin.methods.selection import lowest


def prepare(hessian: Tensor, settings: Wanda) -> None:
    """Nothing is shared: a score needs the diagonal alone."""


def compress(weight: Tensor, hessian: Tensor, settings: Wanda, prepared: None = None) -> Compressed:
    """Set weights of [outputs, inputs] to zero under second moments [inputs, inputs].

    The score of a weight is |W_ij| sqrt(H_jj). Each output loses as many of its weights as any other: a share of them,
    or m - n of every m in a row (docs/maths.md, Masks). Inputs never excited score 0 and go first; what is kept of them
    stays as it is. Computes in float32, or float64 where the weight is float64. Raises RuntimeError where a pattern's
    groups do not divide the inputs: `plan` refuses that.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    matrix = hessian.to(work.dtype)
    scores = work.abs() * matrix.diagonal().clamp(min=0).sqrt()
    kept, group = settings.kept or (work.shape[1] - round(settings.ratio * work.shape[1]), work.shape[1])
    keep = ~lowest(scores.reshape(len(scores), -1, group), group - kept, dim=2).flatten(1)
    dense = work.masked_fill(~keep, 0)
    return Compressed(
        weight=dense,
        encoding=Masked(keep),
        loss=linear_algebra.relative_loss(work, dense, matrix),
        damp=0.0,
        fallback=None,
        dead_inputs=int((matrix.diagonal() <= 0).sum()),
    )
