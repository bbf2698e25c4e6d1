"""The line of the gate about speed: the measured speed-up over the base against the manifest's threshold.

Knows the row of speed-ups and a report's numbers; measures nothing.
"""

from hubplugin.evaluation import speed_metrics
from hubplugin.evaluation.gate.candidate import Candidate
from hubplugin.manifest.metrics import GATE_KEYS, Thresholds
from hubplugin.report import GateLine, Speed

SPEED = "speed"  # the line's name


def speed(candidate: Candidate) -> GateLine | None:
    """The speed-up keeps the manifest's threshold; no line where it sets none."""
    return judge_speed(candidate.speed, candidate.thresholds)


def judge_speed(measured: Speed | None, thresholds: Thresholds) -> GateLine | None:
    """The same of numbers alone. What could not be measured on this machine does not pass."""
    limit = thresholds.limits().get(speed_metrics.GATED)
    if limit is None:
        return None
    value = speed_metrics.speedup(measured)
    if measured is None or value is None or measured.variant is None:
        why = measured.not_measured if measured else "the manifest does not ask for it"
        return GateLine(name=SPEED, passed=False, detail=f"not measured: {why}; at least {limit:g} is asked for")
    at_once = measured.variant.loads[-1].concurrency
    detail = (
        f"{value:.2f} times the base's output tokens per second, {at_once} at once; at least {limit:g} is asked for"
    )
    return GateLine(name=SPEED, passed=GATE_KEYS[speed_metrics.GATED].holds(value, limit), detail=detail)
