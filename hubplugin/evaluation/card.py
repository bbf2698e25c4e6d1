"""report -> model card. Pure and offline: the same report always gives the same text.

Every number on a card stands in the report or is a ratio of two that do. Strings that came from elsewhere (names,
licences, errors, the manifest) are data: the YAML is dumped, never formatted, and the Markdown is escaped.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from hubplugin.checkpoint.format_names import GPTQ
from hubplugin.manifest.methods import METHODS, Kind
from hubplugin.plan.schemes import Scheme
from hubplugin.report import LinearResult, Report

TEMPLATE = "card.md.jinja"
WORST = 5  # linears listed with their loss
PAPERS = {name: row.paper for name, row in METHODS.items()}
RELATIONS = {Kind.QUANTIZE: "quantized", Kind.RECOVER: "finetune"}  # to the base, in the Hub's vocabulary
MASKS = {name: row.title for name, row in METHODS.items() if row.kind is Kind.MASK}
# licences that ask for a sentence of their own in whatever is made from the model
NOTICES = {
    "llama": "Built with Llama.",
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms.",
}


class _Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def render(report: Report) -> str:
    """The README.md of a variant: YAML front matter and Markdown."""
    methods = [step["method"] for step in report.steps]
    licence = (report.base.licence or "").lower()
    return _template().render(
        report=report,
        front_matter=_Markdown(_yaml(metadata(report))),
        kinds=[METHODS[method].kind.value for method in methods],
        quantizer=next((METHODS[step].title for step in methods if METHODS[step].kind is Kind.QUANTIZE), None),
        mask_updates=any(METHODS[method].updates_kept for method in methods),
        gptq=_gptq(report),
        mask=next((MASKS[method] for method in methods if method in MASKS), None),
        int8_inputs=8 in _settings(report, "activation_bits"),
        three_bits=3 in _settings(report, "bits"),
        grids=_grids(report),
        worst=_worst(report.linears),
        damping=_damping(report.linears),
        notice=next((text for name, text in NOTICES.items() if licence.startswith(name)), None),
        pruned=_pruned(report),
        uneven=_uneven(report),
        fitted={linear.method for linear in report.linears},
        papers=[(method, PAPERS[method]) for method in dict.fromkeys(methods)],
    )


def metadata(report: Report) -> dict[str, Any]:
    """The card's YAML front matter, in the Hub's vocabulary, with one block of our own: `compression`."""
    base, gptq = report.base, _gptq(report)
    data: dict[str, Any] = {}
    if base.on_hub:  # a local folder's name would be taken for a repo
        data["base_model"] = base.repo
        # The Hub knows adapter, merge, quantized and finetune. A model that was only pruned or masked is none of these:
        # "finetune" would claim training that never happened, so the relation is left out and a tag says what it is;
        # where it was trained back, it did happen.
        relation = RELATIONS.get(METHODS[report.steps[-1]["method"]].kind)
        if relation:
            data["base_model_relation"] = relation
    if base.licence:
        several = base.licence.split(", ")
        data["license"] = several if len(several) > 1 else base.licence
    data |= {
        key: value
        for key, value in (("license_name", base.licence_name), ("license_link", base.licence_link))
        if value is not None
    }
    if base.languages:
        data["language"] = list(base.languages)
    library = "vllm" if _uneven(report) else "transformers"  # which of them can load it
    data |= {"library_name": library, "pipeline_tag": "text-generation", "tags": _tags(report)}
    if report.calibration.dataset:
        data["datasets"] = [report.calibration.dataset]
    if report.evaluation:
        data["model-index"] = [{"name": report.model_name, "results": [_results(report)]}]
    data["compression"] = {
        "steps": [step["method"] for step in report.steps],
        **({key: gptq[key] for key in ("bits", "group_size", "format") if key in gptq} if gptq else {}),
        "baseline": {
            "repo": base.repo,
            "revision": base.revision,
            "bytes": report.sizes_base.safetensors_bytes,
        },
        "bytes": report.sizes.safetensors_bytes,
        "ratio_disk": round(report.disk_ratio, 4),
        "bits_per_weight": {
            "linear": round(report.sizes.linear_bits_per_weight, 4),
            "model": round(report.sizes.model_bits_per_weight, 4),
        },
        **({} if report.sizes.sparsity is None else {"sparsity": round(report.sizes.sparsity, 4)}),
        "manifest_sha256": report.manifest_sha256,
        "versions": {"hubplugin": report.hubplugin, **report.versions},
    }
    return data


def _uneven(report: Report) -> bool:
    """Whether blocks differ in what pruning left of them."""
    return report.shaping is not None and len({(one.heads, one.kv_heads, one.ffn) for one in report.shaping.blocks}) > 1


PRUNED = {
    "num_hidden_layers": "layers",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "attention heads",
    "intermediate_size": "FFN channels",
}


def _pruned(report: Report) -> str:
    """What went of a pruned model, in words."""
    kinds = [PRUNED[key] for key in report.widths if key in PRUNED]
    if report.shaping:
        kinds += ["FFN channels"] * (len({one.ffn for one in report.shaping.blocks}) > 1)
        kinds += ["attention heads"] * (len({(one.heads, one.kv_heads) for one in report.shaping.blocks}) > 1)
    return " and ".join(dict.fromkeys(kinds)) or "units"


def _tags(report: Report) -> list[str]:
    gptq = _gptq(report)
    tags = ["hubplugin", "vllm"]
    if gptq:
        tags += [gptq["method"], "quantized", f"{gptq['bits']}-bit", f"int{gptq['bits']}"]
    if any(METHODS[step["method"]].kind is Kind.PRUNE for step in report.steps):
        tags.append("pruned")
    tags += [tag for step in report.steps if step["method"] in MASKS for tag in ("sparse", step["method"])]
    if any(name.startswith("chat_template") for name in report.files):
        tags.append("conversational")
    return tags


def _results(report: Report) -> dict[str, Any]:
    """Our own numbers as a model-index entry; nothing is inherited from the base's card."""
    evaluation = report.evaluation
    assert evaluation is not None
    rows = (
        ("perplexity", "perplexity", evaluation.variant.perplexity),
        ("kl_divergence", "mean KL(base || variant), nats per token", evaluation.variant.mean_kl),
        ("top1_agreement", "top-1 agreement with the base", evaluation.variant.top1_agreement),
    )
    return {
        "task": {"type": "text-generation"},
        # `type` is a Hub id where there is one; the Hub demands some word
        "dataset": {"name": evaluation.tokens.source, "type": evaluation.tokens.dataset or "local"},
        "metrics": [
            {"type": kind, "name": name, "value": value, "verified": False}
            for kind, name, value in rows
            if value is not None
        ],
    }


def _gptq(report: Report) -> dict[str, Any] | None:
    return next((step for step in report.steps if METHODS[step["method"]].kind is Kind.QUANTIZE), None)


def _settings(report: Report, key: str) -> set[Any]:
    """The values that a key has in the quantization step and its overrides."""
    gptq = _gptq(report) or {}
    return {each.get(key) for each in (gptq, *gptq.get("overrides", {}).values())}


def _grids(report: Report) -> list[tuple[str, int]]:
    """How many units a budget gave each grid, the commonest first."""
    units = report.allocation.units if report.allocation else ()
    found = Counter(str(Scheme(one.bits, one.group_size, one.symmetric, None, GPTQ)) for one in units)
    return found.most_common()


def _worst(linears: Iterable[LinearResult]) -> list[LinearResult]:
    """The linears with the largest loss, of those whose loss is known."""
    known = [(linear.loss, linear) for linear in linears if linear.loss is not None]
    return [linear for _, linear in sorted(known, key=lambda each: -each[0])[:WORST]]


def _damping(linears: Iterable[LinearResult]) -> list[tuple[str, float, float]]:
    """By method that damps: the least and the greatest damping that was used."""
    used: dict[str, list[float]] = {}
    for linear in linears:
        if linear.damp:
            used.setdefault(linear.method, []).append(linear.damp)
    return [(method, min(values), max(values)) for method, values in used.items()]


# -- strings as data


def _yaml(data: dict[str, Any]) -> str:
    """YAML in which every string is one line, so that none of them can look like the end of the block."""

    def one_line(value: Any) -> Any:
        if isinstance(value, dict):
            return {one_line(key): one_line(item) for key, item in value.items()}
        if isinstance(value, list):
            return [one_line(item) for item in value]
        return " ".join(value.split()) if isinstance(value, str) else value

    return yaml.safe_dump(one_line(data), sort_keys=False, allow_unicode=True, width=float("inf"))


def _escape(value: Any) -> str:
    """What every `{{ }}` of the template passes through: one line, with nothing that Markdown or HTML would act on."""
    if isinstance(value, _Markdown):
        return value
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(str(value).split()))


def _code(value: Any) -> _Markdown:
    """An identifier as a code span, also inside a table."""
    text = " ".join(str(value).split()).replace("|", "¦")
    fence = "`" * (_longest_run(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return _Markdown(f"{fence}{pad}{text}{pad}{fence}")


def _fenced(text: str, language: str) -> _Markdown:
    """Text verbatim in a block whose fence is longer than any inside."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return _Markdown(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def _word(value: str) -> _Markdown:
    """A name inside a block of shell commands; what no repo or folder is called cannot leave its word."""
    return _Markdown(re.sub(r"[^\w./-]", "_", value, flags=re.ASCII))


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _link(value: str) -> _Markdown:
    """A web address as a link; anything else as code."""
    plain = re.fullmatch(r"https?://[\w.~:/?#@!$&'()*+,;=%-]+", value, re.ASCII)
    return _Markdown(f"<{value}>") if plain else _code(value)


# -- numbers as text


def _bytes(value: int) -> str:
    """Decimal units, as the Hub shows them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value} B"


def _count(value: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return str(value)


def _figures(value: float, digits: int = 4) -> str:
    """So many significant digits, never an exponent."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        finalize=_escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        code=_code, word=_word, fenced=_fenced, link=_link, bytes=_bytes, count=_count, duration=_duration
    )
    environment.filters.update(figures=_figures, percent=lambda value: f"{100 * value:.2f} %")
    return environment.get_template(TEMPLATE)
