"""Evaluation as the formulas stand, and as it was done until 0.1: torch's own products and statistics in float64.

`evaluation.py` and tests hold `quality_metrics` against it. Forward passes are in float32, the base's logits are made
again for each variant. Knows folders and logits.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from hubplugin.checkpoint import formats
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.evaluation.token_statistics import perplexity
from hubplugin.kernels import rotary_embedding
from hubplugin.kernels.instructions import panel_products, rms_norm
from hubplugin.model.architectures.families import Family
from hubplugin.model.block_runner import Model

LOGITS = 2**23  # positions times vocabulary at once


@dataclass(frozen=True)
class Measured:
    """A base, and what is needed to hold variants against it."""

    model: Model
    hidden: Tensor  # float32 [windows, tokens, hidden]
    tokens: Tensor  # int [windows, tokens]
    quality: dict[str, float]


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Products by torch, norms and rotations by transformers: hubplugin's own came later."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(panel_products, "works", lambda: False))
        for kernel in (rms_norm, rotary_embedding):
            stack.enter_context(mock.patch.object(kernel, "install", lambda module: None))
        yield


@plain()
def reference(folder: Path, family: Family, tokens: Tensor) -> Measured:
    """The base's perplexity on tokens int [windows, tokens]."""
    model, hidden = _hidden(folder, family, tokens)
    losses = [_losses(model.logits(rows), ids) for rows, ids in _pieces(model, hidden, tokens)]
    quality = {"perplexity": perplexity(torch.cat(losses).reshape(len(tokens), -1))}
    return Measured(model, hidden, tokens, quality)


@plain()
def measure(folder: Path, family: Family, base: Measured) -> dict[str, float]:
    """A variant's perplexity, its mean and 99th percentile of KL(base || variant), top-1 agreement."""
    model, hidden = _hidden(folder, family, base.tokens)
    pieces = zip(_pieces(model, hidden, base.tokens), _pieces(base.model, base.hidden, base.tokens), strict=True)
    losses, divergences, same = [], [], []
    for (rows, ids), (base_rows, _) in pieces:
        logits, base_logits = model.logits(rows), base.model.logits(base_rows)
        losses.append(_losses(logits, ids))
        divergences.append(_divergence(base_logits, logits))
        same.append(logits.argmax(-1) == base_logits.argmax(-1))
    kl = torch.cat(divergences)
    return {
        "perplexity": perplexity(torch.cat(losses).reshape(len(base.tokens), -1)),
        "mean_kl": float(kl.mean()),
        "p99_kl": float(kl.quantile(0.99)),
        "top1_agreement": float(torch.cat(same).double().mean()),
    }


def _hidden(folder: Path, family: Family, tokens: Tensor) -> tuple[Model, Tensor]:
    view = DenseView(folder)
    model = Model(view, view.config, family)
    model.on_inputs(view.int8_inputs, formats.int8_per_token)
    return model, model.hidden_states(tokens)


def _pieces(model: Model, hidden: Tensor, tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    rows, ids = hidden[:, :-1].reshape(-1, hidden.shape[-1]), tokens[:, 1:].reshape(-1).long()
    at_once = max(1, LOGITS // model.vocabulary)
    return list(zip(rows.split(at_once), ids.split(at_once), strict=True))


def _losses(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, ids, reduction="none").double()


def _divergence(base_logits: Tensor, logits: Tensor) -> Tensor:
    base_logs, logs = base_logits.double().log_softmax(-1), logits.double().log_softmax(-1)
    return base_logs.exp().mul(base_logs - logs).sum(-1).clamp(min=0)
