"""Quality of a model FOLDER, never of weights in memory: perplexity, and how far its predictions moved from the base.

Perplexity is exp of the mean negative log-likelihood (natural log) over non-overlapping windows; each window predicts
all of its tokens but the first. KL(base || variant) is taken per predicted position over the whole vocabulary, in
float32 logits: unlike perplexity it also sees changes that happen to cancel. Knows no method and no Hub.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hubplugin.checkpoint import formats
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import default_device
from hubplugin.model.families import Family
from hubplugin.model.kl_divergence import LOGITS, divergence
from hubplugin.progress import progress
from hubplugin.report import Evaluation, Quality, Tokens

TALK_SECONDS = 10  # at least, between two lines of progress


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
    """Measure the base once for all its variants."""
    model = open_model(folder, family, device=default_device())
    hidden = model.hidden_states(tokens, _talk("base", len(model)))
    losses = [_nll(logits, ids) for logits, ids in _pieces(model, hidden, tokens)]
    return Reference(tokens, model, hidden, quality(losses, len(tokens)), description)


def measure(folder: Path, family: Family, base: Reference, kl: bool) -> Evaluation:
    """Measure a variant's folder on the reference's tokens."""
    model = open_model(folder, family, device=base.model.device)
    hidden = model.hidden_states(base.tokens, _talk("variant", len(model)))
    losses, divergences, agreed = [], [], 0
    pieces = zip(_pieces(model, hidden, base.tokens), _pieces(base.model, base.hidden, base.tokens), strict=True)
    for (logits, ids), (base_logits, _) in pieces:
        losses.append(_nll(logits, ids))
        if kl:
            divergences.append(divergence(base_logits, logits))
            agreed += int((logits.argmax(-1) == base_logits.argmax(-1)).sum())
    sequences, window = base.tokens.shape
    rounded = len(DenseView(folder).int8_inputs)
    return Evaluation(
        tokens=base.description,
        protocol=f"windows of {window} tokens, stride {window}, no BOS added, each window predicts {window - 1}; "
        f"float32 on the dequantized folder{f', inputs of {rounded} linears rounded to int8' if rounded else ''}; "
        "+/- is one standard error over windows",
        predicted_tokens=sequences * (window - 1),
        base=base.quality,
        variant=quality(losses, sequences, divergences, agreed),
    )


def _talk(name: str, blocks: int) -> Callable[[int], None]:
    """A line of progress after a block, where the last one is some time ago."""
    last = time.monotonic()

    def talk(index: int) -> None:
        nonlocal last
        if time.monotonic() - last > TALK_SECONDS:
            last = time.monotonic()
            progress(f"evaluate {name} | block {index + 1:02d}/{blocks}")

    return talk


def _pieces(model: Model, hidden: Tensor, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits [n, vocabulary], the tokens they should predict [n]), a bounded number of positions at a time."""
    flat = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    wanted = tokens[:, 1:].reshape(-1).long()
    count = max(1, LOGITS // model.vocabulary)
    for rows, ids in zip(flat.split(count), wanted.split(count), strict=True):
        yield model.logits(rows), ids


def _nll(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, ids.to(logits.device), reduction="none").double()


def quality(losses: Sequence[Tensor], sequences: int, divergences: Sequence[Tensor] = (), agreed: int = 0) -> Quality:
    """Perplexity with its standard error by the delta method, windows being the independent samples.

    `losses` are negative log-likelihoods of all predicted tokens, sequence after sequence, in pieces of any length;
    `divergences` KL of the same tokens, where it was measured, and `agreed` how many have the base's first choice.
    """
    windows = torch.cat(list(losses)).reshape(sequences, -1).mean(dim=1).cpu()
    mean = float(windows.mean())
    error = float(windows.std() / math.sqrt(len(windows))) if len(windows) > 1 else float("nan")
    found = Quality(perplexity=math.exp(mean), perplexity_stderr=math.exp(mean) * error)
    if not divergences:
        return found
    kl = torch.cat(list(divergences))
    distance = {
        "mean_kl": float(kl.mean()),
        "p99_kl": float(kl.quantile(0.99)),
        "top1_agreement": agreed / len(kl),
    }
    return found.model_copy(update=distance)
