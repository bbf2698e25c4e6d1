"""Sensitivity: what one change of one block does to the model's predictions, with everything else as in the base.

Knows blocks, linears and sublayers. Knows no method, no option and no budget.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor, nn

from hubplugin.compress.blocks.blockwise import activations_folder
from hubplugin.limits import PROBE_TOKENS
from hubplugin.model import kl_divergence
from hubplugin.model.activations import Batch
from hubplugin.model.architectures.families import Sublayer
from hubplugin.model.block_runner import Model
from hubplugin.model.construction import heterogeneous

MOMENT_TOKENS = 131072  # at most, that second moments are summed over before anything is chosen
PROBE_LENGTH = 128  # tokens of a sequence that changes are tried on, where there are sequences enough
UNJUDGED = 4  # of these, a quarter is read and not judged: at the start of a text other layers matter than in it


def first_sequences(tokens: Tensor, most: int) -> Tensor:
    """The first sequences of ids [sequences, tokens]: `most` tokens in all at most, but one sequence at least."""
    return tokens[: max(1, most // tokens.shape[1])]


def probe(tokens: Tensor) -> Tensor:
    """The beginnings of sequences that single changes are tried on: PROBE_TOKENS of ids [sequences, tokens] at most.

    Many sequences tell more than long ones. One token of each sequence at least.
    """
    length = min(tokens.shape[1], max(PROBE_LENGTH, PROBE_TOKENS // len(tokens)))
    return first_sequences(tokens[:, :length], PROBE_TOKENS)


def activations(model: Model, tokens: Tensor, spill: Path | None) -> tuple[list[Batch], list[Batch]]:
    """Of the base, before its first block: what second moments are summed over, and what changes are tried on.

    For ids [sequences, tokens]; with `spill`, an empty folder, they live there.
    """
    calibration = model.embed(first_sequences(tokens, MOMENT_TOKENS), activations_folder(spill, "calibration"))
    return calibration, model.embed(probe(tokens), activations_folder(spill, "probe"))


def judged(hidden: Tensor) -> Tensor:
    """Of states [sequences, tokens, hidden] those that KL is the mean over."""
    return hidden[:, hidden.shape[1] // UNJUDGED :]


def divergences(model: Model, base: list[Batch], changed: Iterable[list[Batch]]) -> list[float]:
    """KL in nats per judged token between the base and each change of it, from activations behind the last block."""
    base_hidden, *others = (judged(model.final_norm(batches)) for batches in (base, *changed))
    return kl_divergence.divergences(model, base_hidden, others)


def forward_reweighted(
    model: Model, index: int, batches: list[Batch], linears: Sequence[nn.Linear], weight: Tensor
) -> list[Batch]:
    """`batches` behind block `index`, with other weights in these linears, stacked as [outputs, inputs].

    The linears have their own weights again afterwards.
    """
    originals = [linear.weight for linear in linears]
    for linear, rows in zip(linears, weight.split([len(original) for original in originals]), strict=True):
        linear.weight = nn.Parameter(rows.to(linear.weight.dtype), requires_grad=False)
    model.forward_block(index, batches)
    for linear, original in zip(linears, originals, strict=True):
        linear.weight = original
    return batches


def block_without(model: Model, index: int, sublayers: Sequence[Sublayer]) -> nn.Module:
    """A copy of the filled block `index` without these sublayers, for `Model.forward_block`."""
    block = model.copy_block(index)
    for sublayer in sublayers:
        heterogeneous.remove(block, sublayer)
    return block
