"""report -> the table at a card's top: size, quality and speed in a line each, for readers of ten seconds."""

from hubplugin.evaluation.cards import markdown, numbers
from hubplugin.evaluation.cards.markdown import Markdown
from hubplugin.report import Report


def rows(report: Report) -> list[Markdown]:
    """Lines of what was measured, and what was not."""
    lines = {"size": _size(report), "quality": _quality(report), "tasks": _tasks(report), "speed": _speed(report)}
    return [markdown.table_row([name, text]) for name, text in lines.items() if text]


def _size(report: Report) -> str:
    before, after = (numbers.in_bytes(sizes.safetensors_bytes) for sizes in (report.sizes_base, report.sizes))
    bits = f"{report.sizes.model_bits_per_weight:.2f} bits per weight over the whole model"
    of_both = f" ({numbers.in_bytes(report.adapter.bytes)} of them the adapter)" if report.adapter else ""
    return f"{report.disk_ratio:.2f} times smaller: {after}{of_both} instead of {before}, {bits}"


def _quality(report: Report) -> str:
    """Of perplexities, recovery is the base's over the variant's."""
    measured = report.evaluation
    if measured is None:
        return "not measured"
    ratio = measured.variant.perplexity / measured.base.perplexity
    said = f"perplexity {ratio:.3f} times the base's (recovery {numbers.percent(1 / ratio)})"
    if measured.variant.top1_agreement is None:
        return said
    return f"{said}; the same most likely token at {numbers.percent(measured.variant.top1_agreement)} of positions"


def _tasks(report: Report) -> str:
    """The mean recovery of the tasks; nothing where none were asked."""
    results = report.tasks.results if report.tasks else ()
    recoveries = [result.recovery for result in results if result.recovery is not None]
    if not recoveries:
        return ""
    mean = numbers.percent(sum(recoveries) / len(recoveries))
    asked = results[0].name if len(results) == 1 else f"{len(results)} tasks, on average"
    return f"{mean} of the base's score in {asked}"


def _speed(report: Report) -> str:
    """The speed-up at the lowest and the highest concurrency, and where it was measured; nothing without a speed."""
    speed = report.speed
    if speed is None or speed.variant is None:
        return "not measured" if speed else ""
    ends = {load.concurrency: load for load in (speed.variant.loads[0], speed.variant.loads[-1])}
    said = [f"{load.speedup.median:.2f} times at {one} at once" for one, load in ends.items() if load.speedup]
    return f"output tokens per second {', '.join(said)}, on {speed.machine.processor}"
