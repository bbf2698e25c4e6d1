"""Lines of the card's table of speed: base and variant, medians with the least and the greatest of all rounds."""

from typing import Any

from hubplugin.evaluation import speed_metrics
from hubplugin.evaluation.cards import markdown
from hubplugin.evaluation.metrics import Metric
from hubplugin.report import Speed
from hubplugin.speed_record import Served, UnderLoad


def rows(speed: Speed | None) -> list[markdown.Markdown]:
    """One line for each metric of the engine, then for each metric at each concurrency; none without measurements."""
    if speed is None or speed.base is None or speed.variant is None:
        return []
    found = [_row(metric, "", speed.base, speed.variant) for metric in speed_metrics.SERVED]
    for metric in speed_metrics.SPEED:
        for base, variant in zip(speed.base.loads, speed.variant.loads, strict=True):
            found.append(_row(metric, f", {variant.concurrency} at once", base, variant))
    return [row for row in found if row is not None]


def _row(
    metric: Metric[Any], where: str, base: Served | UnderLoad, variant: Served | UnderLoad
) -> markdown.Markdown | None:
    cell = _cell(metric, variant)
    if metric.card is None or not cell:
        return None
    return markdown.table_row([f"{metric.card.label}{where}", _cell(metric, base), cell])


def _cell(metric: Metric[Any], record: Served | UnderLoad) -> str:
    spread = speed_metrics.spread(metric.key, record)
    if metric.card is None or spread is None:
        return ""
    text = metric.card.text
    if spread.least == spread.greatest:
        return text(spread.median)
    return f"{text(spread.median)} ({text(spread.least)} to {text(spread.greatest)})"
