"""What a budget chooses among: units of linears that share a scheme, the options of each, and what every option weighs.

A unit is what vLLM stacks into one matrix. Arithmetic on shapes and settings; it knows no weights and no losses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hubplugin.checkpoint.format_names import COMPRESSED_TENSORS, GPTQ
from hubplugin.checkpoint.headers import Header
from hubplugin.errors import PlanError
from hubplugin.manifest.steps.gptq import GridQuantization
from hubplugin.plan import schemes, sizes, vllm_support
from hubplugin.plan.choices import knapsack
from hubplugin.plan.choices.knapsack import Choice
from hubplugin.plan.schemes import LinearPlan, Scheme

FINE, COARSE = 32, (128, 64, 32, -1)  # inputs that share a scale; the first of COARSE that divides a unit's inputs


@dataclass(frozen=True)
class Unit:
    """Linears that get one scheme together."""

    linears: tuple[LinearPlan, ...]
    options: tuple[Scheme, ...]  # cheapest first
    costs: tuple[int, ...]  # bytes of all that stands for the weights, by option

    @property
    def weights(self) -> int:
        """Weights of all linears of the unit."""
        return sum(linear.after[0] * linear.after[1] for linear in self.linears)

    @property
    def name(self) -> str:
        """The first linear's path, with all of the last parts."""
        parent = self.linears[0].name.removesuffix(self.linears[0].short)
        shorts = [linear.short for linear in self.linears]
        return parent + (shorts[0] if len(shorts) == 1 else f"{{{','.join(shorts)}}}")


@dataclass(frozen=True)
class Budget:
    """Units and the bytes they may take together."""

    units: tuple[Unit, ...]
    room: int

    def measured_for(self) -> list[Any]:
        """All of the budget that measurements depend on, as JSON: its units with their options, and not its room."""
        return [[unit.name, [asdict(option) for option in unit.options]] for unit in self.units]

    def choose(self, losses: Sequence[Sequence[float]]) -> list[int]:
        """The index of every unit's option with the least total loss; `losses` by unit and option."""
        items = [
            [Choice(cost, loss) for cost, loss in zip(unit.costs, own, strict=True)]
            for unit, own in zip(self.units, losses, strict=True)
        ]
        chosen = knapsack.solve(items, self.room)
        assert chosen is not None  # `make` refused such budgets
        return chosen

    def schemes(self, chosen: Sequence[int]) -> dict[str, Scheme]:
        """Every chosen linear's scheme, by its full path."""
        return {
            linear.name: unit.options[index]
            for unit, index in zip(self.units, chosen, strict=True)
            for linear in unit.linears
        }

    def before_measuring(self) -> dict[str, Scheme]:
        """What is planned with before any loss is known: every code bit is taken to quarter a weight's loss."""
        return self.schemes(
            self.choose([[unit.weights * _usual_loss(option) for option in unit.options] for unit in self.units])
        )

    def corners(self) -> list[dict[str, Scheme]]:
        """Choices that show every option of every unit once: all cheapest, all second cheapest, and so on."""
        most = max(len(unit.options) for unit in self.units)
        return [self.schemes([min(number, len(unit.options) - 1) for unit in self.units]) for number in range(most)]


def _usual_loss(scheme: Scheme) -> float:
    return float(4.0**-scheme.bits * (1 if scheme.group_size == FINE else 1.4))


def make(
    step: GridQuantization,
    linears: Sequence[LinearPlan],
    dense: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, Header],
    where: str,
) -> Budget:
    """The units of a step's budget. `linears` are all of the blocks and the quantized head; `dense` and `stored` as for
    `sizes.tensors`. Linears that are ignored or that overrides name are left as they are, and count.

    Raises PlanError where no choice fits, or where the dearest does and something would be left.
    """
    assert step.budget is not None
    units = []
    for members in vllm_support.fused(linears):
        open_linears = [
            linear
            for linear in members
            if linear.scheme and not schemes.override_of(step, linear.name) and not is_head(linear)
        ]
        if open_linears and len(open_linears) < len(members):
            rest = ", ".join(linear.short for linear in members if linear not in open_linears)
            what = f"{open_linears[0].name} is left to the budget and {rest} of the same stack is not"
            raise PlanError(where, what, _both(members))
        if open_linears:
            units.append(_unit(step, members, stored, where))
    names = [linear.name for unit in units for linear in unit.linears]
    if step.budget.bytes is not None:
        headers = sizes.tensors(dense, stored, [linear for linear in linears if linear.name not in names])
        fixed = sum(header.bytes for name, header in headers.items() if name.removesuffix(".weight") not in names)
        limit = step.budget.bytes
    else:
        assert step.budget.bits_per_weight is not None
        block = [linear for linear in linears if not is_head(linear)]
        limit = int(step.budget.bits_per_weight * sum(linear.after[0] * linear.after[1] for linear in block) / 8)
        fixed = sum(_bytes(linear, linear.scheme, stored) for linear in block if linear.name not in names)
    _holds(step, units, limit, fixed, linears, where)
    return Budget(tuple(units), limit - fixed)


def is_head(linear: LinearPlan) -> bool:
    """Whether a linear is the output head: it has a scheme of the step's own, and no place in bits per weight."""
    return linear.short == vllm_support.HEAD


def _both(members: Sequence[LinearPlan]) -> str:
    return f"let ignore and overrides name all of {', '.join(linear.short for linear in members)}, or none"


def _bytes(linear: LinearPlan, scheme: Scheme | None, stored: Mapping[str, Header]) -> int:
    header = stored[f"{linear.name}.weight"]
    if scheme is None:
        return Header(header.dtype, linear.after).bytes
    return sum(part.bytes for part in sizes.packed_tensors(*linear.after, scheme, header.dtype).values())


def _unit(step: GridQuantization, members: tuple[LinearPlan, ...], stored: Mapping[str, Header], where: str) -> Unit:
    assert step.budget is not None and members[0].scheme is not None
    layout, inputs = members[0].scheme.layout, members[0].after[1]
    if step.budget.options:
        grids = [
            Scheme(option.bits, option.group_size, option.symmetric, None, layout) for option in step.budget.options
        ]
    else:
        coarse = next(size for size in COARSE if size == -1 or inputs % size == 0)
        # of fewer bits only where the manifest names the format: not all that reads 4 and 8 bits of it reads these
        widths = (2, 3, *schemes.GPTQ_BITS) if step.format == COMPRESSED_TENSORS else schemes.GPTQ_BITS
        grids = [Scheme(bits, coarse, True, None, layout) for bits in widths]
        grids.append(Scheme(4, FINE, True, None, layout))
    costs = {
        scheme: sum(_bytes(linear, scheme, stored) for linear in members)
        for scheme in grids
        if all(_fits(linear, scheme) for linear in members)
    }
    if not costs:
        what = f"no option fits {members[0].name}'s {members[0].after[0]} outputs and {inputs} inputs"
        raise PlanError(f"{where}.budget", what, f"add an option that does, or ignore: [{members[0].short}]")
    options = sorted(costs, key=lambda scheme: costs[scheme])
    return Unit(members, tuple(options), tuple(costs[scheme] for scheme in options))


def _fits(linear: LinearPlan, scheme: Scheme) -> bool:
    """Whether words and groups come out whole."""
    outputs, inputs = linear.after
    whole = vllm_support.whole_words(scheme)
    zeros = scheme.layout == GPTQ or not scheme.symmetric
    groups = scheme.group_size < 0 or inputs % scheme.group_size == 0
    return groups and inputs % whole == 0 and not (zeros and outputs % whole)


def _holds(
    step: GridQuantization, units: Sequence[Unit], limit: int, fixed: int, linears: Sequence[LinearPlan], where: str
) -> None:
    """Refuse what is too little for any choice, and what would leave bytes unspent."""
    assert step.budget is not None
    least, most = (fixed + sum(unit.costs[end] for unit in units) for end in (0, -1))
    if not units:
        raise PlanError(f"{where}.budget", "ignore and overrides leave no linear to it", "remove it, or ignore less")
    if least <= limit <= most:
        return
    key, low, high = "bytes", f"{least}", f"{most}"
    if step.budget.bytes is None:
        weights = sum(linear.after[0] * linear.after[1] for linear in linears if not is_head(linear))
        key, low, high = "bits_per_weight", f"{_up(8 * least / weights):g}", f"{int(800 * most / weights) / 100:g}"
    side = "below what the cheapest options take" if limit < least else "above what the dearest options take"
    more = "" if step.budget.options else _more(step, limit < least)
    raise PlanError(f"{where}.budget.{key}", f"is {side}", f"use {low} to {high}{more}")


def _more(step: GridQuantization, low: bool) -> str:
    if not low:
        return ", or leave the budget out"
    named = step.format == COMPRESSED_TENSORS
    return "" if named else "; with format: compressed-tensors there are 2 and 3 bits too"


def _up(bits: float) -> float:
    """To two digits, and never below."""
    return -int(-bits * 100 // 1) / 100
