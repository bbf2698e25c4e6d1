"""The part of docs/pruning.md about training after pruning: what it brought back, and held-out KL against minutes.

Measures nothing; a pure function of results.
"""

from collections.abc import Sequence
from typing import Any

from page import table


def section(found: Sequence[dict[str, Any]]) -> list[str]:
    """A paragraph and a table for every result that was trained, beside the same one before its training."""
    alone = {(each["method"], each["ratio"]): each for each in found}
    trained = [
        (each, (each["method"].removesuffix("-recovered"), each["ratio"])) for each in found if "recovery" in each
    ]
    pairs = [(each, alone[pruned]) for each, pruned in trained if pruned in alone]
    if not pairs:
        return []
    return ["### Trained afterwards\n", *(line for pair in pairs for line in _trained(*pair))]


def _trained(result: dict[str, Any], pruned: dict[str, Any]) -> list[str]:
    made, base = result["recovery"], result["base"]["perplexity"]
    seconds = sum(made["seconds"].values())
    before, after = (each["quality"]["perplexity"] - base for each in (pruned, result))
    step = next(each for each in result["made_from"]["steps"] if each["method"] == "recover")
    settings = ", ".join(f"{key}: {value}" for key, value in step.items())
    machine = result["machine"]
    said = (
        f"`{{{settings}}}` at {result['ratio']:.0%} on {made['tokens']:,} different tokens of the calibration text, "
        f"{made['steps']} steps in {seconds / 60:.0f} minutes on {machine['processor']}, {machine['cores']} cores: "
        f"excess perplexity {before:.2f} as pruned, {after:.2f} trained ({after / before:.2f} of it), mean KL "
        f"{pruned['quality']['mean_kl']:.4f} and {result['quality']['mean_kl']:.4f}. "
        f"Weights of step {made['best_step']} are kept. Held-out KL, on {made['held_out_tokens']:,} other tokens of "
        "that text, as it fell:\n"
    )
    rows = [["0", "0", f"{made['kl_before']:.4f}"]]
    rows += [[f"{seconds * at / made['steps'] / 60:.0f}", str(at), f"{kl:.4f}"] for at, kl in made["curve"]]
    return [said, table("minutes | steps | held-out KL", rows)]
