"""The line of the gate about quality: measured numbers against the manifest's thresholds, or against floors.

Knows rows of metrics and a report's numbers; measures nothing.
"""

from collections.abc import Mapping

from hubplugin.evaluation import metrics
from hubplugin.evaluation.gate.candidate import Candidate
from hubplugin.manifest.metrics import GATE_KEYS, SPEED, Thresholds
from hubplugin.report import Evaluation, GateLine

QUALITY = "quality"  # the line's name
NO_THRESHOLD = "the manifest sets no threshold"


def quality(candidate: Candidate) -> GateLine:
    """The measured numbers keep the manifest's thresholds; where it sets none for a metric, the metric's floor."""
    return judge(candidate.evaluation, candidate.thresholds)


def judge(evaluation: Evaluation | None, thresholds: Thresholds) -> GateLine:
    """The same of numbers alone; None: nothing was measured."""
    limits = {key: limit for key, limit in thresholds.limits().items() if GATE_KEYS[key].needs is not SPEED}
    if evaluation is None:
        detail = "the manifest sets a threshold but nothing was measured" if limits else NO_THRESHOLD
        return GateLine(name=QUALITY, passed=not limits, detail=detail)
    texts = evaluation.on_all_texts
    passed, details = True, []
    for index, text in enumerate(texts):
        on_text = f"text {index + 1}, {text.tokens.source}: " if len(texts) > 1 else ""
        kept, found = _on_text(text, limits)
        passed &= kept
        details += [on_text + detail for detail in found]
    return GateLine(name=QUALITY, passed=passed, detail="; ".join(details) or NO_THRESHOLD)


def _on_text(evaluation: Evaluation, limits: Mapping[str, float]) -> tuple[bool, list[str]]:
    """Whether the numbers of one text keep all limits and floors, and what is to be said of them."""
    passed, details = True, []
    for metric in metrics.QUALITY:
        if metric.key not in GATE_KEYS:
            continue
        row, value = GATE_KEYS[metric.key], metric.value(evaluation.variant, evaluation.base)
        if metric.key in limits:
            limit = limits[metric.key]
            passed &= row.holds(value, limit)
            details.append(f"{metric.label} {'not measured' if value is None else f'{value:.4f}'}, allowed {limit:g}")
        elif row.floor is not None and value is not None and not row.holds(value, row.floor):
            passed = False
            than = "more" if row.better == "lower" else "less"
            details.append(
                f"{metric.label} {value:.4f}: {than} than {row.floor:g} passes only with a threshold of its own, "
                f"gate: {{{metric.key}: ...}}"
            )
    return passed, details
