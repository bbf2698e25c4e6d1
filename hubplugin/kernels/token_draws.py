"""Draws of tokens from predicted probabilities, from uniform numbers that the caller made. Knows no model.

torch.multinomial makes an exponential for every entry of the vocabulary, and takes many times as long on a CPU
(findings/torch_multinomial_of_one_on_cpus.sh).
"""

import torch
from torch import Tensor


def drawn(p: Tensor, uniform: Tensor) -> Tensor:
    """A token int64 [rows] of each row of probabilities [rows, vocabulary], by a number of [0, 1) each [rows, 1].

    It is the one at which the sum of probabilities passes that number; in float64, or the tail would be lost.
    """
    cumulated = p.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)[:, 0].clamp_(max=p.shape[-1] - 1)
