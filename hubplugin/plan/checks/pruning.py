"""What a pruning step and a model cannot do together: each contradiction a PlanError.

Knows settings, families and counts; decides no shape (choices/pruning_space.py) and reads no weights.
"""

from hubplugin.errors import PlanError
from hubplugin.manifest.steps.prune import Prune
from hubplugin.model.architectures.families import Family
from hubplugin.plan import sizes
from hubplugin.plan.choices.pruning_space import Space


def check_family(family: Family, model_type: str, where: str) -> None:
    """Whether the blocks are of a kind that pruning knows."""
    if family.experts is not None:
        raise PlanError(
            where,
            "this model has experts: each would keep channels of its own, and vLLM runs them as one matrix",
            "remove the step, or prune a model without experts",
        )
    if not family.widths:
        raise PlanError(
            where,
            f"blocks of {model_type} already differ from one another",
            "prune the model it was made from, by as much as you want in all",
        )


def check_depth(prune: Prune, layers: int, where: str) -> None:
    """Something of everything must stay; whole layers are taken from those that have lost nothing else."""
    removed = prune.layers or 0
    sublayers = removed + (prune.attention or 0) if removed else 0
    for key, others in (("layers", 0), ("attention", removed), ("mlp", sublayers)):
        count, most = getattr(prune, key) or 0, layers - 1 - others
        if count > most:
            raise PlanError(f"{where}.{key}", f"{count} of {layers} cannot go", f"use {most} or fewer")


def check_target(space: Space, outside: int, where: str) -> None:
    """A target that some shape meets, and that something must go for."""
    linears, slack = sizes.linear_parameters(space.family, space.base), space.slack(space.weights)
    if space.step.ratio and space.step.ratio * linears <= slack:
        fix = f"use a ratio of {slack / linears + 0.005:.2f} or more"
        raise PlanError(f"{where}.ratio", f"{space.step.ratio:g} of the weights rounds to none of them", fix)
    if space.step.params is None:
        return
    total = outside + linears
    if not outside < space.step.params < total:
        raise PlanError(
            f"{where}.params",
            f"the model has {total} parameters, {outside} of them outside the blocks' linears",
            f"use a number between, such as {outside + (total - outside) * 7 // 10}",
        )
