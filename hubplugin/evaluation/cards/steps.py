"""What a report says of a variant's steps and shape, for cards.

Its steps are plain dictionaries; METHODS has their rows. Knows reports, methods and schemes; no Markdown.
"""

import json
from typing import Any

import yaml

from hubplugin.checkpoint.format_names import COMPRESSED_TENSORS, GPTQ, INT_QUANTIZED, PACK_QUANTIZED
from hubplugin.manifest.methods import METHODS, Kind, Method
from hubplugin.model.architectures.families import FAMILIES
from hubplugin.plan.schemes import Scheme, Stored, codebook_layout
from hubplugin.report import Report

Step = dict[str, Any]


def method_of(step: Step) -> Method:
    """The row of a step."""
    return METHODS[step["method"]]


def settings_of(step: Step) -> dict[str, str]:
    """The settings of a step that say something, as a manifest writes them; its method is left out."""
    return {key: _written(value) for key, value in _given(step).items() if key != "method"}


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that are None or empty, at every depth, under the manifest's own keys."""
    inner = {key: _given(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key.rstrip("_"): value for key, value in inner.items() if value not in (None, {}, (), [])}


def _written(value: Any) -> str:
    if not isinstance(value, dict | list | tuple):
        return str(value)
    plain = json.loads(json.dumps(value))  # tuples as lists
    return str(yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=float("inf"))).strip()


def step_of(report: Report, kind: Kind) -> Step | None:
    """The step of a kind; None where the variant has none."""
    return next((step for step in report.steps if method_of(step).kind is kind), None)


def distilled_from(report: Report) -> str:
    """Whom a distilled model has learnt from; empty for any other."""
    made = report.distillation
    if made is None:
        return ""
    return made.teacher.repo if made.teacher else made.answers.by if made.answers else ""


def heterogeneous(report: Report) -> bool:
    """Whether blocks differ in their numbers of heads or FFN channels."""
    if report.shaping is None:
        return False
    return len({(block.heads, block.kv_heads, block.ffn) for block in report.shaping.blocks}) > 1


def factored(report: Report) -> bool:
    """Whether linears are stored as two factors."""
    step = step_of(report, Kind.FACTORIZE)
    return step is not None and step.get("layout") == "factored"


def needs_plugin(report: Report) -> bool:
    """Whether hubplugin's plugin for vLLM loads it, and nothing else does."""
    return heterogeneous(report) or stored(report).needs_plugin


def conversational(report: Report) -> bool:
    """Whether a chat template is among the files."""
    return any(name.startswith("chat_template") for name in report.files)


def chosen(report: Report) -> list[Scheme]:
    """The grid of each unit that a budget chose for; empty without a budget."""
    quantization = step_of(report, Kind.QUANTIZE) or {}
    units = report.allocation.units if report.allocation else ()
    packed = quantization.get("format") == COMPRESSED_TENSORS
    layout = PACK_QUANTIZED if packed else GPTQ
    return [Scheme(unit.bits, unit.group_size, unit.symmetric, None, layout) for unit in units]


def stored(report: Report) -> Stored:
    """How the linears are stored, as far as loaders must know; of an adapter, those of the variant that it is for."""
    step = _quantization(report)
    if step is None:
        return Stored(frozenset((None,)), factors=factored(report))
    settings = [step | {key: value for key, value in own.items() if value is not None} for own in _overrides(step)]
    found: set[Scheme | None] = {*chosen(report), *map(_scheme, settings if report.allocation else [step, *settings])}
    found |= {None} if step.get("ignore") else set()
    row = FAMILIES.get(report.base.model_type)
    experts = row is not None and row.experts is not None
    return Stored(frozenset(found), bool(step.get("lm_head")), experts, factored(report))


def _quantization(report: Report) -> Step | None:
    steps = report.adapter.steps if report.adapter else report.steps
    return next((step for step in steps if method_of(step).kind is Kind.QUANTIZE), None)


def _overrides(step: Step) -> list[dict[str, Any]]:
    return list((step.get("overrides") or {}).values())


def _scheme(settings: Step) -> Scheme:
    activation_bits = settings.get("activation_bits")
    packed = PACK_QUANTIZED if activation_bits is None else INT_QUANTIZED
    layout = packed if settings.get("format") == COMPRESSED_TENSORS else GPTQ
    return Scheme(
        bits=settings["bits"],
        group_size=settings.get("group_size", -1),
        symmetric=settings.get("symmetric", True),
        activation_bits=activation_bits,
        layout=codebook_layout(settings["values"]) if "values" in settings else layout,
    )
