"""What ranks are chosen among: the linears of each input group, shared and separate factors, and what these weigh.

One search over all groups spends the weights that a ratio leaves (docs/maths.md, Low rank). Arithmetic on shapes,
settings and given losses; it knows no weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor

from hubplugin.checkpoint.format_names import STACKS
from hubplugin.errors import PlanError
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.plan import schemes
from hubplugin.plan.choices import knapsack
from hubplugin.plan.choices.knapsack import Choice
from hubplugin.plan.schemes import Factors, LinearPlan


@dataclass(frozen=True)
class Losses:
    """What a group loses, as parts of the energy of the stack of its linears; a dense linear loses nothing."""

    shared: tuple[float, ...]  # by rank of `Group.shared_ranks`
    separate: tuple[tuple[float, ...], ...]  # by linear, and rank of `Group.ranks`


@dataclass(frozen=True)
class Sensitivity:
    """What losses of a group cost the model: in straight lines from nothing through the measured points."""

    points: tuple[tuple[float, float], ...]  # loss and KL in nats per token, both rising

    def kl(self, loss: float) -> float:
        """KL of a loss; behind the last point on the last line."""
        known = ((0.0, 0.0), *(point for point in self.points if point[0] > 0))
        if len(known) == 1:
            return 0.0
        (start, low), (end, high) = next(
            ((one, two) for one, two in pairwise(known) if loss <= two[0]), (known[-2], known[-1])
        )
        return low + (high - low) * (loss - start) / (end - start)


@dataclass(frozen=True)
class Chosen:
    """Ranks of a group."""

    ranks: tuple[int | None, ...]  # by linear; None: it stays dense
    shared: bool  # one A for all, whose rank they all have
    weights: int  # of all its linears, as factors or dense
    loss: float


@dataclass(frozen=True)
class Group:
    """Linears of one block that read one input, and become factors or stay dense."""

    linears: tuple[LinearPlan, ...]
    step: LowRank

    @property
    def name(self) -> str:
        """The first linear's path, with all of the last parts."""
        shorts = ",".join(linear.short for linear in self.linears)
        return self.linears[0].name if len(self.linears) == 1 else f"{self._parent}{{{shorts}}}"

    @property
    def _parent(self) -> str:
        return self.linears[0].name.removesuffix(self.linears[0].short)

    @property
    def inputs(self) -> int:
        """Columns of all its weights."""
        return self.linears[0].after[1]

    @property
    def outputs(self) -> int:
        """Rows of all its weights."""
        return sum(linear.after[0] for linear in self.linears)

    @property
    def may_share(self) -> bool:
        """Whether they are all that vLLM stacks into one matrix: such a stack has a name for a common A."""
        stack = {STACKS.get(linear.short) for linear in self.linears}
        whole = [short for short, name in STACKS.items() if name in stack]
        return len(self.linears) > 1 and len(stack) == 1 and len(whole) == len(self.linears)

    @property
    def stack_ranks(self) -> range:
        """Ranks of which a common A and B hold fewer weights than the stack of all."""
        return self._ranks(self.outputs, self.inputs)

    @property
    def shared_ranks(self) -> range:
        """The same, where A may be common."""
        return self.stack_ranks if self.may_share else range(0)

    def ranks(self, linear: LinearPlan) -> range:
        """Ranks of which factors of one linear hold fewer weights than it does."""
        return self._ranks(*linear.after)

    def _ranks(self, outputs: int, inputs: int) -> range:
        """Multiples below break-even, from about half of what the ratio alone would give: below the probes, nothing is
        known of what a loss costs."""
        ranks, half = below_break_even(outputs, inputs, self.step.rank_multiple), self._by_ratio(outputs, inputs) / 2
        return ranks[max(0, floor(half / self.step.rank_multiple + 0.5) - 1) :]

    def _by_ratio(self, outputs: int, inputs: int) -> float:
        return (1 - self.step.ratio) * outputs * inputs / (outputs + inputs)

    @property
    def probes(self) -> tuple[int, ...]:
        """Ranks of the stack that KL is measured with, the largest first: nearest to the ratio, and the smallest."""
        wanted = self._by_ratio(self.outputs, self.inputs)
        nearest = min(self.stack_ranks, key=lambda rank: abs(rank - wanted))
        return tuple(dict.fromkeys((nearest, self.stack_ranks[0])))

    def options(self, losses: Losses) -> list[Chosen]:
        """Every rank that is shared, and of separate ones those that a growing room passes, each with one linear
        changed to any other rank."""
        shared = [
            Chosen((rank,) * len(self.linears), True, rank * (self.outputs + self.inputs), loss)
            for rank, loss in zip(self.shared_ranks, losses.shared, strict=True)
        ]
        items = [
            [Choice(rank * sum(linear.after), loss) for rank, loss in zip(self.ranks(linear), own, strict=True)]
            + [Choice(linear.after[0] * linear.after[1], 0.0)]
            for linear, own in zip(self.linears, losses.separate, strict=True)
        ]
        passed = [tuple(picked) for picked in knapsack.climb(items)]
        changed = (
            (*picked[:place], index, *picked[place + 1 :])
            for picked in passed
            for place, item in enumerate(items)
            for index in range(len(item))
        )
        return [*shared, *(self._separate(picked, items) for picked in dict.fromkeys((*passed, *changed)))]

    def _separate(self, picked: Sequence[int], items: Sequence[Sequence[Choice]]) -> Chosen:
        """Of each linear the picked choice: a rank, or dense behind the last of them."""
        found = [item[index] for item, index in zip(items, picked, strict=True)]
        ranks = (
            self.ranks(linear)[index] if index < len(self.ranks(linear)) else None
            for linear, index in zip(self.linears, picked, strict=True)
        )
        return Chosen(tuple(ranks), False, sum(one.cost for one in found), sum(one.loss for one in found))

    def usual_losses(self) -> Losses:
        """Before anything is measured: a spectrum that falls in a straight line."""
        return Losses(
            tuple(_usual_loss(rank, self.outputs, self.inputs) for rank in self.shared_ranks),
            tuple(
                tuple(_usual_loss(rank, *one.after) * one.after[0] / self.outputs for rank in self.ranks(one))
                for one in self.linears
            ),
        )


def _usual_loss(rank: int, outputs: int, inputs: int) -> float:
    return (1 - rank / min(outputs, inputs)) ** 2


def below_break_even(outputs: int, inputs: int, multiple: int) -> range:
    """Ranks r, multiples, with r (outputs + inputs) < outputs * inputs."""
    most = (outputs * inputs - 1) // (outputs + inputs)
    return range(multiple, most + 1, multiple)


@dataclass(frozen=True)
class RankSpace:
    """Groups, and the weights that they may hold together."""

    groups: tuple[Group, ...]
    room: int
    stored: bool  # as factors, not as their product

    def choose(self, losses: Sequence[Losses], sensitivities: Sequence[Sensitivity]) -> list[Chosen]:
        """The ranks of all groups that fit with the least sum of KL."""
        options = [group.options(own) for group, own in zip(self.groups, losses, strict=True)]
        items = [
            [Choice(option.weights, sensitivity.kl(option.loss)) for option in own]
            for own, sensitivity in zip(options, sensitivities, strict=True)
        ]
        picked = knapsack.solve(items, self.room)
        assert picked is not None  # `make` refused such ratios
        return [own[index] for own, index in zip(options, picked, strict=True)]

    def before_measuring(self) -> dict[str, Factors]:
        """What is planned with before any spectrum is known."""
        usual = [group.usual_losses() for group in self.groups]
        alike = [Sensitivity(((1.0, float(group.outputs * group.inputs)),)) for group in self.groups]
        return self.factors((one.ranks, one.shared) for one in self.choose(usual, alike))

    def factors(self, chosen: Iterator[tuple[Sequence[int | None], bool]]) -> dict[str, Factors]:
        """By full path the factors of every linear that has some; `chosen` are ranks by group, and whether shared."""
        return {
            linear.name: Factors(rank, shared, self.stored)
            for group, (ranks, shared) in zip(self.groups, chosen, strict=True)
            for linear, rank in zip(group.linears, ranks, strict=True)
            if rank is not None
        }


def make(step: LowRank, linears: Sequence[LinearPlan], where: str) -> RankSpace:
    """The groups of a step, for all linears of the blocks.

    Raises PlanError where no rank is below break-even, or the smallest ranks hold more than the ratio leaves.
    """
    open_linears = [linear for linear in linears if not schemes.is_ignored(step, linear.name)]
    every = [Group(tuple(members), step) for members in _by_input(open_linears).values()]
    groups = tuple(group for group in every if group.stack_ranks)
    total = sum(linear.after[0] * linear.after[1] for linear in open_linears)
    if not groups:
        widest = max(every, key=lambda group: group.outputs * group.inputs)
        most = below_break_even(widest.outputs, widest.inputs, 1)
        raise PlanError(
            f"{where}.rank_multiple",
            f"no multiple of {step.rank_multiple} is below break-even: that is rank {len(most)} of {widest.name}",
            f"use a rank_multiple of {len(most)} or less" if most else "use a model with wider linears",
        )
    fixed = sum(group.outputs * group.inputs for group in every if group not in groups)
    least = fixed + sum(min(one.weights for one in group.options(group.usual_losses())) for group in groups)
    room = floor((1 - step.ratio) * total)
    if room < least:
        most_ratio = floor(1000 * (1 - least / total)) / 1000
        raise PlanError(
            f"{where}.ratio",
            f"the smallest ranks that are tried still hold {least / total:.1%} of the weights",
            f"use {most_ratio:g} or less, or a smaller rank_multiple",
        )
    return RankSpace(groups, room - fixed, step.layout == "factored")


def _by_input(linears: Sequence[LinearPlan]) -> Mapping[tuple[str, str], list[LinearPlan]]:
    groups: dict[tuple[str, str], list[LinearPlan]] = {}
    for linear in linears:
        groups.setdefault((linear.name.removesuffix(linear.short), linear.input_group), []).append(linear)
    return groups
