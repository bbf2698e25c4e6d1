"""Lines of the card's table of components: weights, bytes, bits per weight and FLOPs, of base and variant."""

from collections.abc import Callable

from hubplugin.evaluation.cards import markdown, numbers
from hubplugin.report import Component, Report

# a cell each, of a component
CELLS: tuple[Callable[[Component], str], ...] = (
    lambda one: numbers.count(one.parameters) if one.parameters else "",
    lambda one: numbers.in_bytes(one.bytes),
    lambda one: f"{8 * one.bytes / one.parameters:.2f}" if one.parameters else "",
    lambda one: numbers.flops(one.flops_per_token) if one.flops_per_token else "",
)


def rows(report: Report) -> list[markdown.Markdown]:
    """One line for each component that base or variant has; none in reports of older releases."""
    before = {one.name: one for one in report.sizes_base.components}
    after = {one.name: one for one in report.sizes.components}
    return [
        markdown.table_row([name, *(cell(one) if one else "" for cell in CELLS for one in _both(name, before, after))])
        for name in dict.fromkeys((*before, *after))
    ]


def _both(name: str, *sides: dict[str, Component]) -> list[Component | None]:
    return [side.get(name) for side in sides]
