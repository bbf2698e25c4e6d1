"""Zeros in a folder's linears: how many there are, and whether they are those that a mask asks for.

Knows stored weights, read one at a time, and the settings of masks. Knows no method.
"""

from collections.abc import Iterable

from torch import Tensor

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.manifest.steps.masks import Masking

ROUNDED = 0.001  # ratio of weights that may become zero by being stored in half precision


def sparsity(view: DenseView, linears: Iterable[str]) -> float:
    """Weights that are zero over all weights of these linears."""
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

    A sparsity is met to one weight for each output. More zeros than asked for may only be those of the base, `before`
    of them, and numbers too small for half precision.
    """
    if step.kept:
        kept, every = step.kept
        full = (weight != 0).unflatten(1, (-1, every)).sum(dim=2) > kept
        if bool(full.any()):
            return f"{int(full.sum())} groups of {every} hold more than {kept} weights that are not zero"
    outputs, zeros, asked = len(weight), count(weight), step.ratio * weight.numel()
    if not asked - outputs <= zeros <= asked + outputs + before + ROUNDED * weight.numel():
        return f"{zeros / weight.numel():.2%} of its weights are zero"
    return ""
