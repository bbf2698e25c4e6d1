"""Every figure of a variant, through the metric rows: a new row of QUALITY, SIZES, SERVED or SPEED appears by itself.

Knows reports and metric rows; no folder and no page.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hubplugin.evaluation import metrics, speed_metrics
from hubplugin.evaluation.cards import numbers
from hubplugin.evaluation.metrics import Metric
from hubplugin.report import Report

QUALITY, SIZE, ENGINE = "quality", "size", "engine"  # whose records a row reads


@dataclass(frozen=True)
class Number:
    """A value, and how it is shown."""

    value: float
    text: str
    around: str = ""  # its standard error, or the least and the greatest of several rounds

    @property
    def key(self) -> str:
        """What JavaScript sorts by; empty for NaN, which sorts like a missing value."""
        if math.isnan(self.value):
            return ""
        return repr(self.value) if math.isfinite(self.value) else ("" if self.value > 0 else "-") + "Infinity"


@dataclass(frozen=True)
class Row:
    """A metric, of speed at one concurrency."""

    metric: Metric[Any]
    source: str
    concurrency: int | None = None

    @property
    def label(self) -> str:
        """As the gate names it."""
        return self.metric.label + (f", {self.concurrency} at once" if self.concurrency else "")

    @property
    def about(self) -> str:
        """Unit, and which direction is better."""
        return ", ".join(filter(None, (self.metric.unit, f"{self.metric.better} is better")))

    def variant(self, report: Report) -> Number | None:
        """The variant's number; None: not measured."""
        variant, base = self._records(report)
        return self._number(variant, base)

    def base(self, report: Report) -> Number | None:
        """The base's number; None: not measured, or a comparison with the base."""
        _, base = self._records(report)
        return None if self.metric.relative else self._number(base, base)

    def text(self, value: float) -> str:
        """As the card shows it, or else the table of measurements."""
        shown = self.metric.card or self.metric.column
        return shown.text(value) if shown else numbers.figures(value)

    def _number(self, record: Any, base: Any) -> Number | None:
        if record is None or base is None:
            return None
        try:
            value = self.metric.value(record, base)
        except ZeroDivisionError:  # a ratio to nothing, in a report that somebody changed
            return None
        return None if value is None else Number(value, self.text(value), self._around(record))

    def _around(self, record: Any) -> str:
        if self.source == ENGINE:
            spread = speed_metrics.spread(self.metric.key, record)
            if spread is None or spread.least == spread.greatest:
                return ""
            return f"{self.text(spread.least)} to {self.text(spread.greatest)}"
        stderr = self.metric.stderr(record) if self.metric.stderr else None
        return "" if stderr is None else f"± {numbers.figures(stderr, 2)}"

    def _records(self, report: Report) -> tuple[Any, Any]:
        """Of variant and base; None where nothing was measured."""
        if self.source == SIZE:
            return report.sizes, report.sizes_base
        if self.source == QUALITY:
            measured = report.evaluation
            return (measured.variant, measured.base) if measured else (None, None)
        served = (report.speed.variant, report.speed.base) if report.speed else (None, None)
        if self.concurrency is None:
            return served
        variant, base = (
            next((load for load in one.loads if load.concurrency == self.concurrency), None) if one else None
            for one in served
        )
        return variant, base


def rows(reports: Iterable[Report]) -> list[Row]:
    """The rows for which at least one of the reports has a number."""
    known = list(reports)
    speeds = [report.speed.variant for report in known if report.speed and report.speed.variant]
    concurrencies = sorted({load.concurrency for served in speeds for load in served.loads})
    found = [Row(metric, QUALITY) for metric in metrics.QUALITY]
    found += [Row(metric, SIZE) for metric in metrics.SIZES]
    found += [Row(metric, ENGINE) for metric in speed_metrics.SERVED]
    found += [Row(metric, ENGINE, count) for metric in speed_metrics.SPEED for count in concurrencies]
    return [row for row in found if any(row.variant(report) for report in known)]
