"""The steps of a report by kind. A report holds steps as plain dictionaries; METHODS knows the row of each."""

from typing import Any

from hubplugin.manifest.methods import METHODS, Kind, Method
from hubplugin.report import Report

Step = dict[str, Any]


def method_of(step: Step) -> Method:
    """The row of a step."""
    return METHODS[step["method"]]


def step_of(report: Report, kind: Kind) -> Step | None:
    """The step of a kind; None where the variant has none."""
    return next((step for step in report.steps if method_of(step).kind is kind), None)
