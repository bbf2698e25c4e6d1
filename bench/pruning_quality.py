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


@torch.inference_mode()
def measure(model: nn.Module, base: Reference, kl: bool = True) -> Quality:
    """Perplexity of a module on the reference's tokens and, where asked, its distance from the reference."""
    tokens, width = base.tokens.long(), base.hidden.shape[-1]
    rows = max(1, evaluate.LOGITS // (base.model.vocabulary * tokens.shape[1]))
    losses, divergences, agreed = [], [], 0
    for ids, hidden in zip(tokens.split(rows), base.hidden.split(rows), strict=True):
        logits = model(ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        wanted = ids[:, 1:].flatten()
        losses.append(nn.functional.cross_entropy(logits, wanted, reduction="none").double())
        if kl:
            expected = base.model.logits(hidden[:, :-1].reshape(-1, width))
            divergences.append(evaluate.divergence(expected, logits))
            agreed += int((logits.argmax(-1) == expected.argmax(-1)).sum())
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
