"""The line of the gate about tasks: the recovery of each that the manifest sets a threshold for.

Knows a report's numbers and thresholds; asks no model.
"""

from hubplugin.evaluation.gate.candidate import Candidate
from hubplugin.manifest.metrics import Thresholds
from hubplugin.report import GateLine
from hubplugin.task_record import Tasks

TASKS = "tasks"  # the line's name


def tasks(candidate: Candidate) -> GateLine | None:
    """Every task keeps its threshold; no line where the manifest sets none."""
    return judge_tasks(candidate.tasks, candidate.thresholds)


def judge_tasks(measured: Tasks | None, thresholds: Thresholds) -> GateLine | None:
    """The same of numbers alone. A recovery over a base that scores nothing is none, and does not pass."""
    if not thresholds.tasks:
        return None
    results = {result.name: result for result in measured.results} if measured else {}
    passed, details = True, []
    for name, limit in thresholds.tasks.items():
        recovery = results[name].recovery if name in results else None
        passed &= recovery is not None and recovery >= limit
        found = "not measured" if recovery is None else f"recovery {recovery:.4f}"
        details.append(f"{name} {found}, at least {limit:g} is asked for")
    return GateLine(name=TASKS, passed=passed, detail="; ".join(details))
