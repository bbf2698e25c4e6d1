"""Runs -> the page: one HTML file that needs nothing beside it. The same reports always give the same text.

Knows what the sections of page.html.jinja show. Foreign strings are escaped by the template, and the page's policy lets
a browser fetch nothing and run no script but the page's own.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

import hubplugin
from hubplugin.evaluation.cards import numbers
from hubplugin.evaluation.cards.plots import Point
from hubplugin.evaluation.cards.tables.speed import kv_cache_cells
from hubplugin.evaluation.pages import differences, figures, pictures, table
from hubplugin.evaluation.pages.differences import Comparison
from hubplugin.evaluation.pages.figures import Number, Row
from hubplugin.evaluation.pages.pictures import Picture
from hubplugin.evaluation.pages.runs import Run, readable
from hubplugin.evaluation.pages.table import Shown
from hubplugin.report import Base, GateLine, Report
from hubplugin.speed_record import Machine

TEMPLATE = "page.html.jinja"
NAME = "report.html"
TEXTS: dict[str, Callable[[float], str]] = {"figures": numbers.figures, "string": str, "two": "{:.2f}".format}


@dataclass(frozen=True)
class Section:
    """All that is known of one variant."""

    shown: Shown
    gate: str
    figures: list[tuple[Row, Number | None, Number | None]]  # of the variant, and of the base
    pictures: list[Picture]
    steps: list[str]
    kv_caches: list[list[str]]  # a line for each data type


@dataclass(frozen=True)
class Pair:
    """A variant that two runs have."""

    variant: str
    old: str  # names of the runs
    new: str
    comparison: Comparison


def render(runs: Sequence[Run]) -> str:
    """The page of all variants of the runs."""
    variants = table.shown(runs)
    reports = [one.report for one in variants]
    return _template().render(
        release=hubplugin.__version__,
        runs=runs,
        bases=list(dict.fromkeys(report.base.repo for report in reports)),
        facts=_facts(reports),
        damaged=[(run, one) for run in runs for one in run.damaged],
        failed=[(one, line) for one in variants for line in _failed(one.report)],
        table=table.of(variants),
        fronts=list(_fronts(variants)),
        pairs=list(_pairs(variants)),
        sections=[_section(one) for one in variants],
    )


def _facts(reports: Sequence[Report]) -> list[tuple[str, list[str]]]:
    """What holds of all variants, each said once."""
    made = sorted(report.created for report in reports)
    speeds = [report.speed for report in reports if report.speed]
    facts = {
        "base": [_base(report.base) for report in reports],
        "licence of the base": [report.base.licence_name or report.base.licence or "not stated" for report in reports],
        "made": [made[0] if made[0] == made[-1] else f"{made[0]} to {made[-1]}"],
        "hubplugin": [report.hubplugin for report in reports],
        "machine of the speeds": [_machine(speed.machine) for speed in speeds],
        "engine": [speed.engine or f"not measured: {speed.not_measured}" for speed in speeds],
    }
    return [(name, list(dict.fromkeys(said))) for name, said in facts.items() if said]


def _base(base: Base) -> str:
    return f"{base.repo}{f' at commit {base.revision}' if base.revision else ''}, {base.architecture}"


def _machine(machine: Machine) -> str:
    features = f" with {', '.join(machine.features)}" if machine.features else ""
    parts = [
        f"{machine.processor}, {machine.cores} cores{features}",
        f"{numbers.in_bytes(machine.memory_bytes)} of memory",
    ]
    return ", ".join([*parts, *machine.accelerators])


def _failed(report: Report) -> Iterable[GateLine]:
    return (line for line in report.gate if not line.passed)


def _fronts(variants: Sequence[Shown]) -> Iterable[tuple[str, Picture]]:
    """A plot for each base: ratios of different bases do not compare."""
    bases: dict[tuple[str, str | None], list[Shown]] = {}
    for one in variants:
        bases.setdefault((one.report.base.repo, one.report.base.revision), []).append(one)
    for (repo, _), group in bases.items():
        points = [Point("base", group[0].report.sizes_base.safetensors_bytes / 1e6, 1.0)]
        for one in group:
            measured = one.report.evaluation
            if measured and measured.base.perplexity:
                ratio = measured.variant.perplexity / measured.base.perplexity
                points.append(Point(one.report.variant, one.report.sizes.safetensors_bytes / 1e6, ratio))
        if picture := pictures.of_variants(points):
            yield repo, picture


def _pairs(variants: Sequence[Shown]) -> Iterable[Pair]:
    """Variants of one name, each with that of the run before it; runs stand in the order of the command line."""
    last: dict[str, Shown] = {}
    for one in variants:
        old = last.get(one.report.variant)
        if old and old.run != one.run:
            yield Pair(one.report.variant, old.run, one.run, differences.compare(old.report, one.report))
        last[one.report.variant] = one


def _section(one: Shown) -> Section:
    report = one.report
    return Section(
        one,
        table.gate(report),
        [(row, row.variant(report), row.base(report)) for row in figures.rows([report])],
        list(pictures.of_variant(report)),
        [differences.step(step) for step in report.steps],
        [kv_cache_cells(one) for one in report.speed.kv_caches] if report.speed else [],
    )


def _numbered(value: float | None, text: str) -> Number | None:
    """A cell of the table of linears."""
    return None if value is None else Number(value, TEXTS[text](value))


def _sha256(text: str) -> str:
    """As a Content-Security-Policy names what it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        bytes=numbers.in_bytes, duration=numbers.duration, sha256=_sha256, readable=readable, numbered=_numbered
    )
    return environment.get_template(TEMPLATE)
