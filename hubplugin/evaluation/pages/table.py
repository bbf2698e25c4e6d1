"""The table of all variants: a column for each figure, a line for each variant and for each base.

Knows runs and rows of figures; no HTML.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hubplugin.evaluation.cards import numbers
from hubplugin.evaluation.pages import figures
from hubplugin.evaluation.pages.figures import Number
from hubplugin.evaluation.pages.runs import Made, Run
from hubplugin.report import Report

PASSED, FAILED, NOT_RUN = "passed", "FAILED", "not run"


@dataclass(frozen=True)
class Shown:
    """A variant on the page."""

    anchor: str
    run: str  # the run's name
    report: Report


@dataclass(frozen=True)
class Heading:
    """The head of a column."""

    label: str
    about: str = ""
    numeric: bool = False
    printed: bool = True  # paper has room for few columns: of speed it shows the comparisons with the base


@dataclass(frozen=True)
class Line:
    """A variant, or a base. A number, a text, or None where nothing is known, for each column."""

    name: str
    anchor: str  # of the variant's section; empty for a base
    cells: list[Number | str | None]


@dataclass(frozen=True)
class Table:
    """Headings of all columns but the name's, and the lines."""

    headings: list[Heading]
    lines: list[Line]


def shown(runs: Sequence[Run]) -> list[Shown]:
    """All variants in order, with an anchor each."""
    pairs: list[tuple[Run, Made]] = [(run, one) for run in runs for one in run.made]
    return [Shown(f"variant-{count}", run.name, one.report) for count, (run, one) in enumerate(pairs, 1)]


def of(variants: Sequence[Shown]) -> Table:
    """The table; a column that would say the same of all variants of one run, or nothing, is left out."""
    rows = figures.rows(one.report for one in variants)
    several_runs = len({one.run for one in variants}) > 1
    several_bases = len({one.report.base.repo for one in variants}) > 1
    texts: list[tuple[Heading, Callable[[Shown], Number | str | None]]] = []
    texts += [(Heading("run"), lambda one: one.run)] if several_runs else []
    texts += [(Heading("base"), lambda one: one.report.base.repo)] if several_bases else []
    texts += [(Heading("steps"), lambda one: methods(one.report)), (Heading("gate"), lambda one: gate(one.report))]
    costs: list[tuple[Heading, Callable[[Shown], Number | str | None]]] = [
        (Heading("time", "all stages, lower is better", True), lambda one: _seconds(one.report)),
        (Heading("peak memory", "of compression, bytes, lower is better", True), lambda one: _memory(one.report)),
    ]
    lines = []
    for base in _bases(variants):
        known: dict[str, Number | str | None] = {"base": base.base.repo}
        cells: list[Number | str | None] = [known.get(heading.label) for heading, _ in texts]
        # its speed was measured beside each variant, and stands in the variant's section
        cells += [None if row.source == figures.ENGINE else row.base(base) for row in rows]
        lines.append(Line(f"base ({base.base.repo})", "", [*cells, *(None for _ in costs)]))
    for one in variants:
        cells = [cell(one) for _, cell in texts]
        cells += [row.variant(one.report) for row in rows]
        lines.append(Line(one.report.variant, one.anchor, [*cells, *(cell(one) for _, cell in costs)]))
    figured = [
        Heading(row.label, row.about, True, printed=row.source != figures.ENGINE or row.metric.relative) for row in rows
    ]
    return Table([*(head for head, _ in texts), *figured, *(head for head, _ in costs)], lines)


def methods(report: Report) -> str:
    """The methods of the steps, in order."""
    return ", ".join(str(step.get("method", "?")) for step in report.steps)


def gate(report: Report) -> str:
    """What came of the gate."""
    return PASSED if report.passed else FAILED if report.gate else NOT_RUN


def _bases(variants: Sequence[Shown]) -> list[Report]:
    """One report for each base and each way in which it was measured."""
    found: dict[tuple[str, str | None, str | None], Report] = {}
    for one in variants:
        base, measured = one.report.base, one.report.evaluation
        found.setdefault((base.repo, base.revision, measured.tokens.sha256 if measured else None), one.report)
    # where some variants were measured and others not, the base is known from those that were
    measured_bases = {key[:2] for key in found if key[2]}
    return [report for key, report in found.items() if key[2] or key[:2] not in measured_bases]


def _seconds(report: Report) -> Number | None:
    total = sum(report.seconds.values())
    return Number(total, numbers.duration(total)) if report.seconds else None


def _memory(report: Report) -> Number:
    return Number(report.peak_memory_bytes, numbers.in_bytes(report.peak_memory_bytes))
