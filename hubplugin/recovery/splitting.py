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
    held = held_out(torch.full((len(tokens),), tokens.shape[1]))
    return Split(tokens[~held], tokens[held])


def held_out(lengths: Tensor) -> Tensor:
    """Which of some sequences are held out, bool [sequences], by their numbers of tokens [sequences]: every eighth."""
    chosen = (torch.arange(len(lengths)) + 1) % min(HELD_OUT, len(lengths)) == 0
    enough = (lengths * chosen).cumsum(0) > HELD_OUT_TOKENS
    first = int(chosen.nonzero()[0])
    enough[: first + 1] = False  # one at least
    return chosen & ~enough
