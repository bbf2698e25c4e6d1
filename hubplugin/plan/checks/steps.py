"""Which steps may follow which, and which of them share a pass over the blocks. Knows kinds of methods; no model."""

from collections.abc import Sequence

from hubplugin.errors import PlanError
from hubplugin.manifest.methods import Kind, kind_of
from hubplugin.manifest.schema import Step
from hubplugin.manifest.steps.training.distill import Distill

_UNDONE, _ALONE = ": each would undo the other's work", "keep one of them, or make a variant of each"
# (kind of the earlier step, kind of the later one) -> why that cannot be, and what to do; all other pairs can
REFUSED: dict[tuple[Kind, Kind], tuple[str, str]] = {
    (Kind.PRUNE, Kind.PRUNE): (_UNDONE, "keep one; each acts on all blocks"),
    (Kind.RECOVER, Kind.PRUNE): (": it would take away what was just trained", "put it first"),
    (Kind.RECOVER, Kind.RECOVER): (_UNDONE, "keep one; each trains all blocks"),
    (Kind.QUANTIZE, Kind.PRUNE): ("", "put it first: codes cannot be refitted"),
    (Kind.QUANTIZE, Kind.RECOVER): ("", "put it before: codes cannot be trained; tune trains what stands beside them"),
    (Kind.QUANTIZE, Kind.QUANTIZE): (_UNDONE, _ALONE),
    (Kind.QUANTIZE, Kind.MASK): (_UNDONE, _ALONE),
    (Kind.MASK, Kind.PRUNE): (": its refit would fill the zeros again", "put it first"),
    (Kind.MASK, Kind.RECOVER): (": training would fill the zeros again", "put it before"),
    (Kind.MASK, Kind.QUANTIZE): (": codes would fill the zeros again", _ALONE),
    (Kind.MASK, Kind.MASK): (_UNDONE, _ALONE),
    (Kind.FACTORIZE, Kind.PRUNE): (": a row of a factor is no channel", "put it first"),
    (Kind.FACTORIZE, Kind.RECOVER): (": it trains whole weights, which would be of full rank again", "put it before"),
    (Kind.FACTORIZE, Kind.MASK): (": factors have no weights that could be set to zero", _ALONE),
    (Kind.FACTORIZE, Kind.FACTORIZE): (_UNDONE, _ALONE),
    (Kind.FACTORIZE, Kind.TUNE): (": it trains scales of whole weights, not of factors", _ALONE),
    (Kind.QUANTIZE, Kind.FACTORIZE): (": codes cannot be factored", "put it first: factors may be quantized"),
    (Kind.MASK, Kind.FACTORIZE): (": a product of factors would fill the zeros again", _ALONE),
    (Kind.TUNE, Kind.TUNE): (_UNDONE, "keep one; each trains all blocks"),
}
# kind -> the kind that must stand before it, why, and what to do
NEEDED: dict[Kind, tuple[Kind, str, str]] = {
    Kind.RECOVER: (
        Kind.PRUNE,
        "trains back what pruning took, and nothing is pruned before it",
        "put it after a prune step, or remove it",
    ),
    Kind.TUNE: (
        Kind.QUANTIZE,
        "trains what stands beside codes, and nothing is quantized before it",
        "put it after a gptq step; weights of a pruned model are trained by recover",
    ),
}
TRAINING = (Kind.RECOVER, Kind.TUNE)  # of finished folders: no pass over the blocks


def check_order(steps: Sequence[Step], where: str) -> None:
    """Raise PlanError for a method that stands twice, a pair of REFUSED, or a step without the one it needs."""
    for index, step in enumerate(steps):
        place, kind, earlier = f"{where}[{index}].method", kind_of(step), steps[:index]
        if any(step.method == other.method for other in earlier):
            raise PlanError(place, f"{step.method} stands twice", "keep one; each acts on all blocks")
        for other in earlier:
            if (refusal := REFUSED.get((kind_of(other), kind))) is not None:
                why, fix = refusal
                raise PlanError(place, f"{step.method} stands after {other.method}{why}", fix)
        if kind in NEEDED and not isinstance(step, Distill):  # which may be given its student
            needed, why, fix = NEEDED[kind]
            if not any(kind_of(other) is needed for other in earlier):
                raise PlanError(place, f"{step.method} {why}", fix)


def passes(steps: Sequence[Step]) -> list[tuple[Step, ...]]:
    """The steps by the passes over all blocks that do them; training is no such pass and is left out.

    Codes share the pass of pruning or of factors. A mask and factors have one of their own, because the weights they
    read were refitted before, and what follows training starts from the folder that training has written.
    """
    groups: list[list[Step]] = [[]]
    for step in steps:
        kind = kind_of(step)
        if groups[-1] and kind is not Kind.QUANTIZE:
            groups.append([])
        if kind not in TRAINING:
            groups[-1].append(step)
    return [tuple(group) for group in groups if group]
