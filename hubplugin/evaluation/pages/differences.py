"""What differs between two reports of one variant: its figures, its linears, and what it was made and measured with.

Knows reports and their rows of figures; no folder and no page.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hubplugin.evaluation.cards import numbers, steps
from hubplugin.evaluation.pages import figures
from hubplugin.evaluation.pages.figures import Number
from hubplugin.report import LinearResult, Report

NONE = "—"
# key of a record -> its label, which direction is better, and how it is shown
KV_CACHE: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "bytes_per_token": ("bytes per token", "lower", "{:,.0f}".format),
    "perplexity_ratio": ("perplexity ratio", "lower", "{:.4f}".format),
    "top1_agreement": ("top-1 agreement", "higher", numbers.percent),
    "mean_kl_top20": ("KL at least", "lower", numbers.figures),
    "tokens_per_second": ("output tokens per second", "higher", numbers.figures),
}


@dataclass(frozen=True)
class Difference:
    """One line: empty change where the two are no numbers."""

    what: str
    old: str
    new: str
    change: str = ""
    better: bool | None = None  # None: neither, or not known


@dataclass(frozen=True)
class Comparison:
    """Two reports of one variant; all lists may be empty."""

    figures: list[Difference]  # of quality, size and speed
    made: list[Difference]  # in what time and with what it was made, measured and checked
    linears: list[Difference]


def compare(old: Report, new: Report) -> Comparison:
    """All that differs. Times of single linears, digests and lists of files are left out: they say nothing alone."""
    figured = [*_figures(old, new), *_kv_caches(old, new)]
    return Comparison(figured, [*_costs(old, new), *_made(old, new)], list(_linears(old, new)))


def _figures(old: Report, new: Report) -> Iterable[Difference]:
    for row in figures.rows((old, new)):
        better = row.metric.better
        yield from _numbers(row.label, row.variant(old), row.variant(new), better, row.text)
        yield from _numbers(f"{row.label}, of the base", row.base(old), row.base(new), None, row.text)


def _kv_caches(old: Report, new: Report) -> Iterable[Difference]:
    """Of data types of the KV cache that either report has."""
    sides = [{one.dtype: one for one in report.speed.kv_caches} if report.speed else {} for report in (old, new)]
    for dtype in dict.fromkeys((*sides[0], *sides[1])):
        before, after = (side.get(dtype) for side in sides)
        for key, (label, better, text) in KV_CACHE.items():
            was, now = (_number(getattr(one, key) if one else None, text) for one in (before, after))
            yield from _numbers(f"KV cache {dtype}, {label}", was, now, better, text)


def _costs(old: Report, new: Report) -> Iterable[Difference]:
    """Times and memory. No colour says which is better: other work on the machine decides them too."""
    for stage in dict.fromkeys((*old.seconds, *new.seconds)):
        before, after = (_number(one.seconds.get(stage), numbers.duration) for one in (old, new))
        if before is None or after is None or before.text != after.text:
            yield from _numbers(f"time, {stage}", before, after, None, numbers.duration)
    before, after = (_number(one.peak_memory_bytes, numbers.in_bytes) for one in (old, new))
    yield from _numbers("peak memory of compression", before, after, None, numbers.in_bytes)


def _made(old: Report, new: Report) -> Iterable[Difference]:
    facts: dict[str, Callable[[Report], Any]] = {
        "base": lambda one: one.base.repo,
        "commit of the base": lambda one: one.base.revision,
        "hubplugin": lambda one: one.hubplugin,
        "made": lambda one: one.created,
        "steps": lambda one: "; ".join(map(step, one.steps)),
        "calibration tokens": lambda one: f"{one.calibration.source}, sha256 {one.calibration.sha256[:12]}",
        "evaluation tokens": lambda one: (
            f"{one.evaluation.tokens.source}, sha256 {one.evaluation.tokens.sha256[:12]}" if one.evaluation else None
        ),
        "protocol": lambda one: one.evaluation.protocol if one.evaluation else None,
        "machine of the speed": lambda one: one.speed.machine.processor if one.speed else None,
        "engine of the speed": lambda one: one.speed.engine or one.speed.not_measured if one.speed else None,
    }
    for what, fact in facts.items():
        yield from _texts(what, fact(old), fact(new))
    for package in dict.fromkeys((*old.versions, *new.versions)):
        yield from _texts(package, old.versions.get(package), new.versions.get(package))
    gates = [
        {line.name: "passed" if line.passed else f"FAILED: {line.detail}" for line in one.gate} for one in (old, new)
    ]
    for name in dict.fromkeys((*gates[0], *gates[1])):
        yield from _texts(f"gate, {name}", gates[0].get(name), gates[1].get(name))


def _linears(old: Report, new: Report) -> Iterable[Difference]:
    sides = [{(one.name, one.method): one for one in report.linears} for report in (old, new)]
    for name, method in dict.fromkeys((*sides[0], *sides[1])):
        before, after = (side.get((name, method)) for side in sides)
        if before is None or after is None:
            yield from _texts(name, before and method, after and method)
        else:
            yield from _linear(before, after)


def _linear(old: LinearResult, new: LinearResult) -> Iterable[Difference]:
    for key in ("loss", "damp", "correction", "dead_inputs"):
        before, after = (_number(getattr(one, key), numbers.figures) for one in (old, new))
        better = "lower" if key == "loss" else None
        yield from _numbers(f"{old.name}, {key.replace('_', ' ')}", before, after, better, numbers.figures)
    yield from _texts(f"{old.name}, fallback", old.fallback, new.fallback)


def step(settings: dict[str, Any]) -> str:
    """A step as one line, its method first."""
    said = ", ".join(f"{key}: {value}" for key, value in steps.settings_of(settings).items())
    return f"{settings.get('method', '?')}{f' with {said}' if said else ''}"


def _number(value: float | None, text: Callable[[float], str]) -> Number | None:
    return None if value is None else Number(value, text(value))


def _texts(what: str, old: Any, new: Any) -> Iterable[Difference]:
    if old != new:
        yield Difference(what, NONE if old is None else str(old), NONE if new is None else str(new))


def _numbers(
    what: str, old: Number | None, new: Number | None, better: str | None, text: Callable[[float], str]
) -> Iterable[Difference]:
    """A line where two numbers differ; with more digits where the usual ones are the same."""
    if old is None or new is None:
        yield from _texts(what, old and old.text, new and new.text)
    elif old.value != new.value and not (math.isnan(old.value) and math.isnan(new.value)):
        same = old.text == new.text
        before, after = (f"{one.value:.9g}" if same else one.text for one in (old, new))
        change = new.value - old.value
        said = ("+" if change > 0 else "−") + (f"{abs(change):.3g}" if same else text(abs(change)))
        if old.value and math.isfinite(change):
            said += f" ({100 * change / abs(old.value):+.2f} %)".replace("-", "−")
        worse = None if better is None or math.isnan(change) else (change > 0) == (better == "lower")
        yield Difference(what, before, after, said, None if worse is None else not worse)
