"""Sequences to train on and sequences held out. Knows token ids. Knows no model and no training."""

from typing import NamedTuple

import torch
from torch import Tensor

from hubplugin.errors import CompressError

HELD_OUT, HELD_OUT_TOKENS = 8, 2**13  # one sequence in so many, until there are so many tokens


class Split(NamedTuple):
    """Token ids [sequences, tokens], of different sequences."""

    train: Tensor
    held_out: Tensor  # what decides which weights are kept


def split(tokens: Tensor) -> Split:
    """Token ids [sequences, tokens], every eighth sequence held out. Raises CompressError for fewer than two."""
    if len(tokens) < 2:
        fix = "give at least 2 samples; hundreds are better"
        raise CompressError("recover", "one sequence leaves none to hold out", fix)
    every = min(HELD_OUT, len(tokens))
    held_out = (torch.arange(len(tokens)) + 1) % every == 0
    held_out &= held_out.cumsum(0) <= max(1, HELD_OUT_TOKENS // tokens.shape[1])
    return Split(tokens[~held_out], tokens[held_out])
