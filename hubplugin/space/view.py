"""What the page shows as HTML: a plan, an error, the figures of a report, a card. Every text in it is escaped.

Knows plans, reports and cards. Knows no Gradio and no visitor.
"""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from hubplugin import front_matter
from hubplugin.checkpoint.model_folder import PLOTS
from hubplugin.errors import HubError, HubPluginError
from hubplugin.evaluation import metrics
from hubplugin.evaluation.cards import numbers
from hubplugin.hub.publishing.push import Pushed
from hubplugin.plan import table
from hubplugin.plan.draft import Plan
from hubplugin.report import Report

FIGURES = ("disk_ratio", "model_bits_per_weight", "perplexity_ratio", "mean_kl", "top1_agreement")


def error(fault: HubPluginError, folder: Path | None = None) -> str:
    """The three parts of an error, without the folders of this machine."""
    parts = {"where": fault.where, "what": fault.what, "fix": fault.fix}
    if isinstance(fault, HubError):  # no visitor can set a variable here
        parts["fix"] = (
            parts["fix"]
            .replace("HF_TOKEN to a token", "a token on this page, one")
            .replace("set HF_TOKEN", "sign in, or give a token on this page")
        )
    if folder is not None:
        parts = {name: text.replace(f"{folder}/", "") for name, text in parts.items()}
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in parts.items())
    return f'<dl class="fault" role="alert">{rows}</dl>'


def note(text: str) -> str:
    """One quiet line."""
    return f'<p class="note">{html.escape(text)}</p>'


def plan(planned: Plan, free: int | None = None) -> str:
    """Sizes, memory, time, and what stock vLLM loads, of the one variant."""
    draft = planned.drafts[0]
    variant = draft.estimate
    guess = " (a guess: measurements decide the shape)" if draft.space else ""
    memory = f"{variant.peak_memory / 1e9:.1f} GB"
    if free is not None:
        memory += f" of {free / 1e9:.1f} GB that are free here"
    figures = [
        ("size", f"{numbers.in_bytes(planned.bytes)} → {numbers.in_bytes(variant.bytes)}"),
        ("smaller", f"{planned.bytes / variant.bytes:.2f} times{guess}"),
        ("parameters", f"{numbers.count(planned.parameters)} → {numbers.count(variant.parameters)}"),
        ("bits per weight, linears", f"{planned.linear_bits_per_weight:.2f} → {variant.linear_bits_per_weight:.2f}"),
        ("memory to compress", memory),
        ("time to compress", f"about {numbers.duration(max(variant.seconds, 1))} on a CPU, and evaluation beside it"),
    ]
    if shape := table.shape(variant):
        figures.insert(0, ("shape", shape + guess))
    loads = [
        (f"vLLM, {verdict.target}", f"loads{': ' + verdict.note if verdict.note else ''}")
        if verdict.loads
        else (f"vLLM, {verdict.target}", f"does not load: {verdict.why}")
        for verdict in variant.verdicts
    ]
    notes = [html.escape(text) for text in (*planned.notes, *variant.notes)]
    listed = f"<ul>{''.join(f'<li>{text}</li>' for text in notes)}</ul>" if notes else ""
    revision = f" @ {planned.revision[:12]}" if planned.revision else ""
    head = f"{planned.model}{revision} → {variant.name}"
    return f'<h3 class="plan">{html.escape(head)}</h3>{_rows(figures)}{_rows(loads)}{listed}'


def figures(report: Report) -> str:
    """The main figures of a finished variant, and whether it passed its gate."""
    measured = report.evaluation
    tiles = _tiles(metrics.SIZES, report.sizes, report.sizes_base)
    if measured is not None:
        tiles += _tiles(metrics.QUALITY, measured.variant, measured.base)
    tiles.append(("gate", "passed" if report.passed else "FAILED"))
    shown = "".join(f"<div><b>{html.escape(text)}</b><span>{html.escape(name)}</span></div>" for name, text in tiles)
    return f'<h3>{html.escape(report.variant)}</h3><div class="tiles">{shown}</div>'


def _tiles(rows: Iterable[metrics.Metric[Any]], variant: Any, base: Any) -> list[tuple[str, str]]:
    chosen = (row for row in rows if row.key in FIGURES)
    values = ((row, row.value(variant, base)) for row in chosen)
    return [(row.label, row.column.text(value)) for row, value in values if row.column and value is not None]


def published(pushes: Iterable[Pushed]) -> str:
    """Where variants are now."""
    lines = []
    for one in pushes:
        url, what = html.escape(one.url, quote=True), "published" if one.changed else "was there already"
        commit = html.escape(one.commit[:12])
        lines.append(f'<p class="done">{what}: <a href="{url}" target="_blank" rel="noopener">{url}</a> @ {commit}</p>')
    return "".join(lines)


def card(folder: Path) -> str:
    """A variant's card, with its plots in it; nothing in it is fetched from anywhere."""
    body = front_matter.behind((folder / "README.md").read_text(encoding="utf-8"))
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", _picture)
    parser.add_render_rule("link_open", _link)
    return f'<div class="card">{parser.render(body, {"folder": folder})}</div>'


def _picture(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    said, name = html.escape(tokens[index].content, quote=True), str(tokens[index].attrs.get("src", ""))
    if name not in PLOTS or not (env["folder"] / name).is_file():
        return said
    data = base64.b64encode((env["folder"] / name).read_bytes()).decode("ascii")
    return f'<img alt="{said}" src="data:image/png;base64,{data}">'


def _link(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].attrs.update(target="_blank", rel="noopener")
    return self.renderToken(tokens, index, options, env)


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in pairs)
    return f'<table class="facts">{rows}</table>'
