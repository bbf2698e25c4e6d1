"""Quality of a rival, which is a module in memory: what `evaluate.measure` says of a folder, by the same formulas.

Logits are compared piece by piece with those of the same dense reference. tests/test_pruning_bench.py holds both ways
against each other.
"""

import torch
from torch import nn

from hubplugin.evaluation.quality_metrics import Reference
from hubplugin.evaluation.token_statistics import LogitsPiece, TokenValues
from hubplugin.model import kl_divergence
from hubplugin.report import Quality

ROWS = 4  # sequences at a time


@torch.inference_mode()
def measure(model: nn.Module, base: Reference, kl: bool = True) -> Quality:
    """Perplexity of a module on the reference's tokens and, where asked, its distance from the reference."""
    tokens, count = base.tokens.long(), max(1, kl_divergence.LOGITS // base.model.vocabulary)
    values = TokenValues(against_base=kl)
    for ids, expected in zip(tokens.split(ROWS), base.hidden.split(ROWS), strict=True):
        hidden = model.model(ids, use_cache=False).last_hidden_state
        flat, base_flat = (each[:, :-1].flatten(0, 1).split(count) for each in (hidden, expected))
        for piece, base_piece, wanted in zip(flat, base_flat, ids[:, 1:].flatten().split(count), strict=True):
            logits = model.lm_head(piece).float()
            base_logits = base.model.logits(base_piece) if kl else None
            values.add(LogitsPiece(logits, wanted, base_logits))
    return values.quality(len(tokens))
