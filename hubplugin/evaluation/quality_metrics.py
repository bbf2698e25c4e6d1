"""Quality of a model FOLDER, never of weights in memory: perplexity, and how far its predictions moved from the base.

Tokens are read in non-overlapping windows; each window predicts all of its tokens but the first, with logits in
float32. Knows folders and the forward pass; which numbers are computed from the logits stands in token_statistics.py.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hubplugin.checkpoint import formats
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.evaluation.token_statistics import LogitsPiece, TokenValues
from hubplugin.model.architectures.families import Family
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import default_device
from hubplugin.model.kl_divergence import hidden_pieces
from hubplugin.progress import progress
from hubplugin.report import Evaluation, Quality, Tokens

PROGRESS_SECONDS = 10  # at least, between two lines of progress


@dataclass(frozen=True)
class Reference:
    """The base's predictions on the evaluation tokens, kept to compare variants against: hidden states, not logits."""

    tokens: Tensor  # int [sequences, tokens]
    model: Model
    hidden: Tensor  # float32 [sequences, tokens, hidden]
    quality: Quality
    description: Tokens


def open_model(folder: Path, family: Family, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Model:
    """A folder as a block-streamed model, whose linears round their inputs where the folder's format does."""
    view = DenseView(folder)
    model = Model(view, view.config, family, dtype, device)
    model.on_inputs(view.int8_inputs, formats.int8_per_token)
    return model


def reference(folder: Path, family: Family, tokens: Tensor, description: Tokens) -> Reference:
    """Measure the base once for all its variants. `tokens` are int [windows, tokens]."""
    model = open_model(folder, family, device=default_device())
    hidden = model.hidden_states(tokens, _progress_of("base", len(model)))
    values = TokenValues(against_base=False)
    for logits, ids in _logits(model, hidden, tokens):
        values.add(LogitsPiece(logits, ids))
    return Reference(tokens, model, hidden, values.quality(len(tokens)), description)


def measure(folder: Path, family: Family, base: Reference, kl: bool) -> Evaluation:
    """Measure a variant's folder on the reference's tokens, with `kl` also against the base's logits."""
    model = open_model(folder, family, device=base.model.device)
    hidden = model.hidden_states(base.tokens, _progress_of("variant", len(model)))
    values = TokenValues(against_base=kl)
    pieces = zip(_logits(model, hidden, base.tokens), _logits(base.model, base.hidden, base.tokens), strict=True)
    for (logits, ids), (base_logits, _) in pieces:
        values.add(LogitsPiece(logits, ids, base_logits))
    sequences, window = base.tokens.shape
    rounded = len(DenseView(folder).int8_inputs)
    return Evaluation(
        tokens=base.description,
        protocol=f"windows of {window} tokens, stride {window}, no BOS added, each window predicts {window - 1}; "
        f"float32 on the dequantized folder{f', inputs of {rounded} linears rounded to int8' if rounded else ''}; "
        "+/- is one standard error over windows",
        predicted_tokens=sequences * (window - 1),
        base=base.quality,
        variant=values.quality(sequences),
    )


def _progress_of(name: str, blocks: int) -> Callable[[int], None]:
    """A function that is called with the index of each finished block and prints a line of progress now and then."""
    last = time.monotonic()

    def after_block(index: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            progress(f"evaluate {name} | block {index + 1:02d}/{blocks}")

    return after_block


def _logits(model: Model, hidden: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits [positions, vocabulary], the tokens that follow [positions]), a bounded number of positions at a time."""
    predicting = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    following = tokens[:, 1:].reshape(-1).long()
    pieces = hidden_pieces(model, predicting)
    for rows, ids in zip(pieces, following.split([len(piece) for piece in pieces]), strict=True):
        yield model.logits(rows), ids
