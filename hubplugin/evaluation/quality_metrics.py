"""Quality of a model FOLDER, never of weights in memory: perplexity, and how far its predictions moved from the base.

Tokens are read in non-overlapping windows; each window predicts all of its tokens but the first. Forward passes are in
float32, or in bfloat16 with its floor beside; logits are compared in float32. Knows folders and the forward pass; which
numbers are computed from the logits stands in token_statistics.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hubplugin.checkpoint import formats
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.evaluation.token_statistics import LogitsPiece, TokenValues
from hubplugin.model.architectures.families import Family
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import computing_dtype, default_device
from hubplugin.model.kl_divergence import hidden_pieces
from hubplugin.progress import now_and_then, progress
from hubplugin.report import Evaluation, Quality, Tokens

FLOOR_WINDOWS = 4  # on which the base in float32 is compared with the base in another dtype


@dataclass(frozen=True)
class Reference:
    """The base's predictions on the evaluation tokens, kept to compare variants against: hidden states, not logits."""

    tokens: Tensor  # int [sequences, tokens]
    model: Model
    hidden: Tensor  # [sequences, tokens, hidden] in the model's dtype
    quality: Quality
    description: Tokens
    floor: Quality | None = None  # of the model's dtype, see `_floor`; None: it is float32


def open_model(folder: Path, family: Family, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Model:
    """A folder as a block-streamed model, whose linears round their inputs where the folder's format does."""
    view = DenseView(folder)
    model = Model(view, view.config, family, dtype, device)
    model.on_inputs(view.int8_inputs, formats.int8_per_token)
    return model


def reference(
    folder: Path, family: Family, tokens: Tensor, description: Tokens, dtype: torch.dtype = torch.float32
) -> Reference:
    """Measure the base once for all its variants. `tokens` are int [windows, tokens].

    bfloat16 is float32 on a CPU that is no faster at it: two kinds are much slower (serve/cpu_features.py).
    """
    device = default_device()
    model = open_model(folder, family, computing_dtype(dtype, device), device)
    if model.dtype != dtype:
        progress(
            f"note: this CPU multiplies {_name(dtype)} no faster than float32, evaluation stays in {_name(model.dtype)}"
        )
    hidden = model.hidden_states(tokens, now_and_then("evaluate base", len(model)))
    floor = None if model.dtype == torch.float32 else _floor(folder, family, model, hidden, tokens)
    return Reference(tokens, model, hidden, _alone(model, hidden, tokens), description, floor)


def _floor(folder: Path, family: Family, model: Model, hidden: Tensor, tokens: Tensor) -> Quality:
    """The base in the model's dtype against the base in float32, on the first FLOOR_WINDOWS windows.

    It is what the dtype alone does to a variant that is the base itself. An engine that rounds logits too does more.
    """
    some = tokens[:FLOOR_WINDOWS]
    exact = open_model(folder, family, torch.float32, model.device)
    exact_hidden = exact.hidden_states(some, now_and_then("evaluate base in float32", len(exact)))
    floor = _against_base(model, hidden[: len(some)], exact, exact_hidden, some)
    progress(f"{_name(model.dtype)} alone: mean KL {floor.mean_kl:.2e} nats per token, on {len(some)} windows")
    return floor


def _against_base(model: Model, hidden: Tensor, base: Model, base_hidden: Tensor, tokens: Tensor) -> Quality:
    values = TokenValues(against_base=True)
    pieces = zip(_logits(model, hidden, tokens), _logits(base, base_hidden, tokens), strict=True)
    for (logits, ids), (base_logits, _) in pieces:
        values.add(LogitsPiece(logits, ids, base_logits))
    return values.quality(len(tokens))


def _alone(model: Model, hidden: Tensor, tokens: Tensor) -> Quality:
    values = TokenValues(against_base=False)
    for logits, ids in _logits(model, hidden, tokens):
        values.add(LogitsPiece(logits, ids))
    return values.quality(len(tokens))


def measure(folder: Path, family: Family, base: Reference, kl: bool) -> Evaluation:
    """Measure a variant's folder on the reference's tokens, with `kl` also against the base's logits."""
    model = open_model(folder, family, base.model.dtype, base.model.device)
    hidden = model.hidden_states(base.tokens, now_and_then("evaluate variant", len(model)))
    if kl:
        variant = _against_base(model, hidden, base.model, base.hidden, base.tokens)
    else:
        variant = _alone(model, hidden, base.tokens)
    sequences, window = base.tokens.shape
    rounded = len(DenseView(folder).int8_inputs)
    floor = f"the floor of {_name(model.dtype)} is that of the first {min(FLOOR_WINDOWS, sequences)} windows; "
    return Evaluation(
        tokens=base.description,
        protocol=f"windows of {window} tokens, stride {window}, no BOS added, each window predicts {window - 1}; "
        f"{_name(model.dtype)} on the dequantized folder"
        f"{f', inputs of {rounded} linears rounded to int8' if rounded else ''}; {floor if base.floor else ''}"
        "+/- is one standard error over windows",
        predicted_tokens=sequences * (window - 1),
        base=base.quality,
        variant=variant,
        floor=base.floor,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _logits(model: Model, hidden: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits [positions, vocabulary], the tokens that follow [positions]), a bounded number of positions at a time.

    The next logits may take the memory of those before.
    """
    predicting = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    following = tokens[:, 1:].reshape(-1).long()
    pieces = hidden_pieces(model, predicting)
    memory = torch.empty(len(pieces[0]), model.vocabulary) if model.device == "cpu" else None
    for rows, ids in zip(pieces, following.split([len(piece) for piece in pieces]), strict=True):
        yield model.logits(rows, None if memory is None else memory[: len(rows)]), ids
