"""Zeros in a folder's linears: how many there are, and whether they are those that a mask was to leave.

Reads stored weights one at a time; knows no method.
"""

from collections.abc import Iterable

from torch import Tensor

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.manifest.masks import Masking

ROUNDED = 0.001  # share of weights that may become zero by being stored in half precision


def share(view: DenseView, linears: Iterable[str]) -> float:
    """The share of weights that are zero, over all of these linears."""
    zeros = weights = 0
    for name in linears:
        weight = view.get(f"{name}.weight")
        zeros, weights = zeros + count(weight), weights + weight.numel()
    return zeros / weights


def count(weight: Tensor) -> int:
    """How many weights are zero."""
    return int((weight == 0).sum())


def fault(weight: Tensor, step: Masking, before: int) -> str:
    """What is wrong with the zeros of a stored weight [outputs, inputs]; empty where they are as asked.

    A share is met to one weight for each output, since rows hold whole weights. More zeros than asked may only be the
    base's own, `before` of them, and numbers too small for half precision.
    """
    if step.kept:
        kept, every = step.kept
        full = (weight != 0).unflatten(1, (-1, every)).sum(dim=2) > kept
        if bool(full.any()):
            return f"{int(full.sum())} groups of {every} hold more than {kept} weights that are not zero"
    outputs, found, asked = len(weight), count(weight), step.share * weight.numel()
    if not asked - outputs <= found <= asked + outputs + before + ROUNDED * weight.numel():
        return f"{found / weight.numel():.2%} of its weights are zero"
    return ""
