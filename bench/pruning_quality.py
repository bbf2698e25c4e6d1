"""Quality of a rival, which is a module in memory: what `evaluate.measure` says of a folder, by the same formulas.

Logits are compared piece by piece with those of the same dense reference. tests/test_pruning_bench.py holds both ways
against each other.
"""

import math

import torch
from torch import Tensor, nn

from hubplugin import evaluate
from hubplugin.evaluate import Reference
from hubplugin.report import Quality

ROWS = 4  # sequences at a time


@torch.inference_mode()
def measure(model: nn.Module, base: Reference, kl: bool = True) -> Quality:
    """Perplexity of a module on the reference's tokens and, where asked, its distance from the reference."""
    tokens, count = base.tokens.long(), max(1, evaluate.LOGITS // base.model.vocabulary)
    losses, divergences, agreed = [], [], 0
    for ids, expected in zip(tokens.split(ROWS), base.hidden.split(ROWS), strict=True):
        hidden = model.model(ids, use_cache=False).last_hidden_state
        flat, base_flat = (each[:, :-1].flatten(0, 1).split(count) for each in (hidden, expected))
        for piece, base_piece, wanted in zip(flat, base_flat, ids[:, 1:].flatten().split(count), strict=True):
            logits = model.lm_head(piece).float()
            losses.append(nn.functional.cross_entropy(logits, wanted, reduction="none").double())
            if kl:
                base_logits = base.model.logits(base_piece)
                divergences.append(evaluate.divergence(base_logits, logits))
                agreed += int((logits.argmax(-1) == base_logits.argmax(-1)).sum())
    found = _perplexity(torch.cat(losses).reshape(len(tokens), -1).mean(dim=1))
    if not kl:
        return found
    moved = torch.cat(divergences)
    update = {
        "mean_kl": float(moved.mean()),
        "p99_kl": float(moved.quantile(0.99)),
        "top1_agreement": agreed / len(moved),
    }
    return found.model_copy(update=update)


def _perplexity(windows: Tensor) -> Quality:
    """From the mean loss of every window; one standard error over windows."""
    perplexity = math.exp(float(windows.mean()))
    error = float(windows.std() / math.sqrt(len(windows))) if len(windows) > 1 else 0.0
    return Quality(perplexity=perplexity, perplexity_stderr=perplexity * error)
