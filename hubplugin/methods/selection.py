"""The smallest of some scores, so many of each row, column or matrix. Knows no weights and no method."""

import torch
from torch import Tensor


def lowest(scores: Tensor, count: int, dim: int) -> Tensor:
    """Mask, bool in the shape of `scores`, of the `count` lowest along a dimension: exactly so many, ties or not."""
    indices = scores.topk(count, dim=dim, largest=False, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(dim, indices, True)
