"""SERVED and SPEED: one row for every number that says how fast a model is served, as metrics.py has them for size.

Rows of SERVED are of a model in the engine, rows of SPEED of one concurrency. The number of a row is a median of
rounds; their least and greatest are shown beside it. Knows reports and no torch.
"""

from collections.abc import Callable
from typing import Any

from hubplugin.evaluation.cards import numbers
from hubplugin.evaluation.metrics import CardRow, Metric
from hubplugin.report import Speed
from hubplugin.speed_record import Served, Spread, UnderLoad

GATED = "tokens_per_second"  # the key of `gate:`, a least speed-up


def _median(key: str) -> Callable[[Any, Any], float | None]:
    def value(variant: Any, base: Any) -> float | None:
        found = spread(key, variant)
        return found.median if found else None

    return value


def spread(key: str, record: Served | UnderLoad) -> Spread | None:
    """The median of a row's number with its least and greatest; None: not measured."""
    found: Spread | None = getattr(record, key)
    return found


def _short_time(value: float) -> str:
    return f"{numbers.figures(1000 * value, 3)} ms" if value < 1 else f"{numbers.figures(value, 3)} s"


def _per_second(value: float) -> str:
    return numbers.figures(value, 3)


SERVED: tuple[Metric[Served], ...] = (
    Metric(
        "ready_seconds",
        label="load time",
        unit="seconds",
        better="lower",
        value=_median("ready_seconds"),
        card=CardRow("load time, start to ready", numbers.duration),
    ),
    Metric(
        "peak_bytes",
        label="peak memory of the engine",
        unit="bytes",
        better="lower",
        value=_median("peak_bytes"),
        card=CardRow("peak memory of the engine's processes", numbers.in_bytes),
    ),
    Metric(
        "others_share",
        label="other processes",
        unit="",
        better="lower",
        value=_median("others_share"),
        card=CardRow("share of the cores that other processes took meanwhile", numbers.percent),
    ),
)

SPEED: tuple[Metric[UnderLoad], ...] = (
    Metric(
        "first_token_seconds",
        label="time to first token",
        unit="seconds",
        better="lower",
        value=_median("first_token_seconds"),
        card=CardRow("time to first token", _short_time),
    ),
    Metric(
        "per_token_seconds",
        label="time per output token",
        unit="seconds",
        better="lower",
        value=_median("per_token_seconds"),
        card=CardRow("time per output token", _short_time),
    ),
    Metric(
        "tokens_per_second",
        label="output tokens per second",
        unit="tokens per second",
        better="higher",
        value=_median("tokens_per_second"),
        card=CardRow("output tokens per second", _per_second),
    ),
    Metric(
        "speedup",
        label="speed-up",
        unit="",
        better="higher",
        value=_median("speedup"),
        relative=True,
        card=CardRow("speed-up over the base, round by round", "{:.2f}".format),
    ),
    Metric(
        "mfu",
        label="MFU",
        unit="",
        better="higher",
        value=_median("mfu"),
        card=CardRow("MFU, share of the machine's dense matrix products", numbers.percent),
    ),
)


def speedup(speed: Speed | None) -> float | None:
    """What the gate looks at: the median speed-up over the base at the highest concurrency; None: not measured."""
    if speed is None or speed.variant is None:
        return None
    highest = speed.variant.loads[-1].speedup
    return highest.median if highest else None
