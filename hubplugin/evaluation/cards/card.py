"""report -> model card. Pure and offline: the same report always gives the same text.

Every number on a card stands in the report or is a ratio of two that do. Knows what the sections of card.md.jinja show;
the front matter is made in card_metadata.py, foreign strings are made harmless in markdown.py.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from hubplugin import licences
from hubplugin.evaluation.cards import markdown, numbers, plots, snippets, steps
from hubplugin.evaluation.cards.card_metadata import metadata
from hubplugin.evaluation.cards.steps import method_of, step_of
from hubplugin.evaluation.cards.tables import components, speed, summary, tasks
from hubplugin.evaluation.metrics import QUALITY, SIZES, Metric, Record
from hubplugin.manifest.methods import METHODS, Kind
from hubplugin.plan import loaders
from hubplugin.report import Base, Evaluation, LinearResult, Report, Sibling

TEMPLATE = "card.md.jinja"
LARGEST_LOSSES = 5  # linears listed with their loss
PAPERS = {name: row.paper for name, row in METHODS.items()}
# what pruning removed, by key of config.json
PRUNED = {
    "num_hidden_layers": "layers",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "attention heads",
    "intermediate_size": "FFN channels",
}


def render(report: Report) -> str:
    """The README.md of a variant: YAML front matter and Markdown."""
    quantization, mask = step_of(report, Kind.QUANTIZE), step_of(report, Kind.MASK)
    factoring, adapting = step_of(report, Kind.FACTORIZE), step_of(report, Kind.ADAPT)
    stored = steps.stored(report)
    return _template().render(
        report=report,
        front_matter=markdown.front_matter(metadata(report)),
        plots=plots.of(report),
        summary_rows=summary.rows(report),
        sibling_rows=[_sibling_row(other) for other in report.siblings],
        pruned=_pruned(report) if step_of(report, Kind.PRUNE) else None,
        recovered=step_of(report, Kind.RECOVER) is not None,
        distilled=steps.distilled_from(report),
        tuned=step_of(report, Kind.TUNE) is not None,
        trainings=[pair for pair in (("Recovery", report.recovery), ("Tuning", report.tuning)) if pair[1]],
        mask=method_of(mask) if mask else None,
        adapter=method_of(adapting) if adapting else None,
        factoring=factoring,
        ranks=_ranks(report),
        quantization=quantization,
        quantizer=method_of(quantization) if quantization else None,
        int8_inputs=any(not scheme.weight_only for scheme in stored.quantized),
        three_bits=any(map(loaders.has_three_bits, stored.quantized)),
        zeros=any(map(loaders.has_zeros, stored.quantized)),
        beyond_transformers=stored.beyond_transformers,
        use=snippets.use(report),
        size_rows=[row for metric in SIZES for row in _size_row(metric, report)],
        component_rows=components.rows(report),
        task_rows=tasks.rows(report.tasks),
        speed_rows=speed.rows(report.speed),
        kv_cache_rows=speed.kv_cache_rows(report.speed),
        quality=[
            (evaluation, [row for metric in QUALITY for row in _quality_row(metric, evaluation)])
            for evaluation in (report.evaluation.on_all_texts if report.evaluation else ())
        ],
        grids=_grids(report),
        largest_losses=_largest_losses(report.linears),
        damping=_damping(report.linears),
        others=_origins(report)[1:],
        origins=_origins(report),
        notices=_notices(report),
        heterogeneous=steps.heterogeneous(report),
        solvers={linear.method for linear in report.linears},
        papers=[(method, PAPERS[method]) for method in dict.fromkeys(step["method"] for step in report.steps)],
    )


def _origins(report: Report) -> list[tuple[str, Base]]:
    """The models that it was made from, the base first, with what each of them was."""
    start = report.start
    roles = ("base" if one == report.base else "student" if one == start else "teacher" for one in report.origins)
    return list(zip(roles, report.origins, strict=True))


def _notices(report: Report) -> list[str]:
    """What the licences of all models that it was made from want to have said, each once."""
    said = (licences.notice(origin.licence) for origin in report.origins)
    return list(dict.fromkeys(notice for notice in said if notice))


def _size_row(metric: Metric[Any], report: Report) -> list[markdown.Markdown]:
    """The line of a metric in the table of sizes: base, variant, base / variant. Empty where the table has none."""
    value = metric.value(report.sizes, report.sizes_base)
    if metric.card is None or value is None:
        return []
    text, base = metric.card.text, _base_value(metric, report.sizes_base)
    cells = ["", text(value), ""] if base is None else [text(base), text(value), f"{base / value:.2f}"]
    return [markdown.table_row([metric.card.label, *cells])]


def _quality_row(metric: Metric[Any], evaluation: Evaluation) -> list[markdown.Markdown]:
    """The line of a metric in the table of quality: base, variant. Empty where it was not measured."""
    if metric.card is None:
        return []
    variant, base = evaluation.variant, evaluation.base
    value = metric.value(variant, base)
    if value is None:
        return []
    cells = [_with_stderr(metric, variant, value)]
    base_value = _base_value(metric, base)
    cells.insert(0, "" if base_value is None else _with_stderr(metric, base, base_value))
    return [markdown.table_row([metric.card.label, *cells])]


def _sibling_row(other: Sibling) -> markdown.Markdown:
    """The line of another variant, named by its repo where it has one."""
    ratio = "" if other.perplexity_ratio is None else f"{other.perplexity_ratio:.4f}"
    kl = "" if other.mean_kl is None else numbers.figures(other.mean_kl)
    return markdown.table_row([other.repo or other.variant, numbers.in_bytes(other.safetensors_bytes), ratio, kl])


def _base_value(metric: Metric[Record], base: Record) -> float | None:
    return None if metric.relative else metric.value(base, base)


def _with_stderr(metric: Metric[Record], record: Record, value: float) -> str:
    assert metric.card is not None
    stderr = metric.stderr(record) if metric.stderr else None
    return metric.card.text(value) + ("" if stderr is None else f" ± {numbers.figures(stderr, 2)}")


def _pruned(report: Report) -> str:
    """What pruning removed, in words."""
    kinds = [PRUNED[key] for key in report.widths if key in PRUNED]
    if report.shaping:
        blocks = report.shaping.blocks
        kinds += ["FFN channels"] * (len({block.ffn for block in blocks}) > 1)
        kinds += ["attention heads"] * (len({(block.heads, block.kv_heads) for block in blocks}) > 1)
    return " and ".join(dict.fromkeys(kinds)) or "units"


def _grids(report: Report) -> list[tuple[str, int]]:
    """How many units a budget gave each grid, the commonest first."""
    return Counter(map(str, steps.chosen(report))).most_common()


def _ranks(report: Report) -> dict[str, int] | None:
    """How many linears became factors and how many stayed dense, and their ranks; None without factors."""
    if report.ranking is None:
        return None
    every = [rank for group in report.ranking.groups for rank in group.ranks]
    ranks = [rank for rank in every if rank is not None]
    shared = sum(group.shared for group in report.ranking.groups)
    least, most = (min(ranks), max(ranks)) if ranks else (0, 0)
    return {"factored": len(ranks), "dense": len(every) - len(ranks), "shared": shared, "least": least, "most": most}


def _largest_losses(linears: Iterable[LinearResult]) -> list[LinearResult]:
    """The linears with the largest loss, of those whose loss is known."""
    known = [(linear.loss, linear) for linear in linears if linear.loss is not None]
    return [linear for _, linear in sorted(known, key=lambda pair: -pair[0])[:LARGEST_LOSSES]]


def _damping(linears: Iterable[LinearResult]) -> list[tuple[str, float, float]]:
    """By method that damps: the least and the greatest damping that was used."""
    used: dict[str, list[float]] = {}
    for linear in linears:
        if linear.damp:
            used.setdefault(linear.method, []).append(linear.damp)
    return [(method, min(values), max(values)) for method, values in used.items()]


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=markdown.escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        code=markdown.code,
        word=markdown.shell_word,
        fenced=markdown.fenced,
        link=markdown.link,
        bytes=numbers.in_bytes,
        duration=numbers.duration,
        figures=numbers.figures,
        percent=numbers.percent,
        picture=lambda plot: markdown.picture(plot.name, plot.caption),
        flops=numbers.flops,
        settings=steps.settings_of,
    )
    return environment.get_template(TEMPLATE)
