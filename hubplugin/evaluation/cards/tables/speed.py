"""Lines of the card's tables of speed: base and variant, medians with the least and the greatest of all rounds; and
data types of the KV cache, which the page of reports shows too.
"""

from collections.abc import Callable
from typing import Any

from hubplugin.evaluation import speed_metrics
from hubplugin.evaluation.cards import markdown, numbers
from hubplugin.evaluation.metrics import Metric
from hubplugin.report import Speed
from hubplugin.speed_record import KVCache, Served, UnderLoad


def rows(speed: Speed | None) -> list[markdown.Markdown]:
    """One line for each metric of the engine, then for each metric at each concurrency; none without measurements."""
    if speed is None or speed.base is None or speed.variant is None:
        return []
    found = [_row(metric, "", speed.base, speed.variant) for metric in speed_metrics.SERVED]
    for metric in speed_metrics.SPEED:
        for base, variant in zip(speed.base.loads, speed.variant.loads, strict=True):
            found.append(_row(metric, f", {variant.concurrency} at once", base, variant))
    return [row for row in found if row is not None]


def kv_cache_rows(speed: Speed | None) -> list[markdown.Markdown]:
    """One line for each data type of the KV cache; none where the manifest asked for none."""
    return [markdown.table_row(kv_cache_cells(one)) for one in speed.kv_caches] if speed else []


def kv_cache_cells(one: KVCache) -> list[str]:
    """Data type, bytes per token, perplexity, its ratio, top-1 agreement, KL at least, tokens per second,
    the share of the cores that other processes took."""
    name = f"{one.dtype} ({one.stored_as})" if one.stored_as else one.dtype
    if one.not_measured:
        return [f"{name}: not measured, {one.not_measured}", *[""] * 7]
    texts: list[tuple[float | None, Callable[[float], str]]] = [
        (one.bytes_per_token, "{:,.0f}".format),
        (one.perplexity, numbers.figures),
        (one.perplexity_ratio, "{:.4f}".format),
        (one.top1_agreement, numbers.percent),
        (one.mean_kl_top20, lambda kl: f"≥ {numbers.figures(kl, 2)}" if kl else "0"),
        (one.tokens_per_second, lambda rate: numbers.figures(rate, 3)),
        (one.others_share, numbers.percent),
    ]
    return [name, *("" if value is None else text(value) for value, text in texts)]


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
