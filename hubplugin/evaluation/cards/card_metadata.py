"""report -> the front matter of a model card, in the Hub's vocabulary, with one block of our own: `compression`.

Knows reports and the Hub's words (https://huggingface.co/docs/hub/model-cards). Pure and offline; knows no Markdown.
"""

import re
from typing import Any, Protocol

from hubplugin import licences
from hubplugin.evaluation.cards.steps import conversational, method_of, needs_plugin, step_of
from hubplugin.evaluation.metrics import QUALITY
from hubplugin.manifest.methods import Kind
from hubplugin.report import AdapterOf, Evaluation, Report
from hubplugin.task_record import TaskResult


class Origin(Protocol):
    """What the card of a base says of it, as far as cards of variants repeat it."""

    @property
    def licence(self) -> str | None: ...
    @property
    def licence_name(self) -> str | None: ...
    @property
    def licence_link(self) -> str | None: ...
    @property
    def languages(self) -> tuple[str, ...]: ...


LANGUAGE = re.compile("[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
# The Hub knows adapter, merge, quantized and finetune. A model that was only pruned or masked is none of these:
# "finetune" would claim training that never happened, so the relation is left out and a tag says what it is; where the
# last step trained, it did happen.
RELATIONS = {Kind.QUANTIZE: "quantized", Kind.TUNE: "quantized", Kind.RECOVER: "finetune"}

# the tag that says what numbers codes stand for, by a codebook's `values`; all others are integers
NUMBERS: dict[str | None, list[str]] = {"free": [], "e2m1": ["nvfp4"]}


def metadata(report: Report) -> dict[str, Any]:
    """The front matter as a mapping, in the order in which it is written."""
    base = report.start  # of a distillation the student: no weight is the teacher's
    data: dict[str, Any] = {}
    if report.adapter:
        if report.adapter.repo:
            data |= {"base_model": report.adapter.repo, "base_model_relation": "adapter"}
    elif base.on_hub:  # a local folder's name would be taken for a repo
        data["base_model"] = base.repo
        relation = RELATIONS.get(method_of(report.steps[-1]).kind)
        if relation:
            data["base_model_relation"] = relation
    data |= inherited(base)
    library = "peft" if report.adapter else "vllm" if needs_plugin(report) else "transformers"  # what can load it
    data |= {"library_name": library, "pipeline_tag": "text-generation", "tags": _tags(report)}
    if report.calibration.dataset:
        data["datasets"] = [report.calibration.dataset]
    results = [*map(_results, report.evaluation.on_all_texts if report.evaluation else ())]
    results += map(_task_result, report.tasks.results if report.tasks else ())
    if results:
        _keep_apart([result["dataset"] for result in results])
        data["model-index"] = [{"name": report.model_name, "results": results}]
    data["compression"] = _compression(report)
    return data


def inherited(base: Origin) -> dict[str, Any]:
    """What is taken over from the base's card: licence and languages, in words that the Hub accepts."""
    data = _licence(base)
    # what is no code (https://huggingface.co/docs/hub/model-cards: ISO 639) would have the Hub refuse the card
    if languages := [code for code in base.languages if LANGUAGE.fullmatch(code)]:
        data["language"] = languages
    return data


def _licence(base: Origin) -> dict[str, Any]:
    data: dict[str, Any] = {}
    known = licences.same_licence(base.licence)
    if base.licence and not known:
        data["license"] = "other"
        data["license_name"] = base.licence_name or licences.other_id(base.licence)
        return data | ({"license_link": base.licence_link} if base.licence_link else {})
    if known:
        ids = known.split(", ")
        data["license"] = ids if len(ids) > 1 else known
    named = {"license_name": base.licence_name, "license_link": base.licence_link}
    return data | {key: value for key, value in named.items() if value is not None}


def _tags(report: Report) -> list[str]:
    quantization = step_of(report, Kind.QUANTIZE)
    tags = ["hubplugin", "vllm"]
    if quantization:
        bits = quantization["bits"]
        tags += [quantization["method"], "quantized", f"{bits}-bit"]
        tags += NUMBERS.get(quantization.get("values"), [f"int{bits}"])
    if adapting := step_of(report, Kind.ADAPT):
        tags += dict.fromkeys(("lora", adapting["method"]))
    if step_of(report, Kind.PRUNE):
        tags.append("pruned")
    if report.distillation:
        tags.append("distillation")
    if step_of(report, Kind.FACTORIZE):
        tags.append("low-rank")
    masks = [step["method"] for step in report.steps if method_of(step).kind is Kind.MASK]
    tags += [tag for method in masks for tag in ("sparse", method)]
    if conversational(report):
        tags.append("conversational")
    return tags


def _results(evaluation: Evaluation) -> dict[str, Any]:
    """Our own numbers as a model-index entry; nothing is inherited from the base's card."""
    values = [(metric.model_index, metric.value(evaluation.variant, evaluation.base)) for metric in QUALITY]
    return {
        "task": {"type": "text-generation"},
        # `type` is a Hub id where there is one; the Hub demands some word
        "dataset": {"name": evaluation.tokens.source, "type": evaluation.tokens.dataset or "local"},
        "metrics": [
            {"type": entry.type, "name": entry.name, "value": value, "verified": False}
            for entry, value in values
            if entry is not None and value is not None
        ],
    }


def _keep_apart(datasets: list[dict[str, str]]) -> None:
    """Give a `config` to datasets whose type others have too.

    huggingface_hub writes results that agree in type, config and split as one, under the first one's name
    (findings/huggingface_hub_merges_results.sh).
    """
    for dataset in datasets:
        if sum(dataset["type"] == other["type"] for other in datasets) > 1:
            dataset["config"] = dataset["name"]


def _task_result(result: TaskResult) -> dict[str, Any]:
    """A task's score as a model-index entry."""
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": result.name, "type": "local" if result.sha256 else result.name},
        "metrics": [{"type": result.metric, "name": result.metric, "value": result.variant.value, "verified": False}],
    }


def _adapter(adapter: AdapterOf) -> dict[str, Any]:
    """What an adapter alone is; `bytes` beside it are of both together."""
    named = {"of": adapter.repo or adapter.variant, "rank": adapter.rank, "bytes": adapter.bytes}
    return named | ({"branch": adapter.branch} if adapter.branch else {})


def _compression(report: Report) -> dict[str, Any]:
    """What was done and what it saved."""
    quantization = step_of(report, Kind.QUANTIZE) or {}
    sparsity = report.sizes.sparsity
    return {
        "steps": [step["method"] for step in report.steps],
        **{key: quantization[key] for key in ("bits", "group_size", "format") if key in quantization},
        "baseline": {
            "repo": report.base.repo,
            "revision": report.base.revision,
            "bytes": report.sizes_base.safetensors_bytes,
        },
        "bytes": report.sizes.safetensors_bytes,
        **({"adapter": _adapter(report.adapter)} if report.adapter else {}),
        "ratio_disk": round(report.disk_ratio, 4),
        "bits_per_weight": {
            "linear": round(report.sizes.linear_bits_per_weight, 4),
            "model": round(report.sizes.model_bits_per_weight, 4),
        },
        **({} if sparsity is None else {"sparsity": round(sparsity, 4)}),
        "manifest_sha256": report.manifest_sha256,
        "versions": {"hubplugin": report.hubplugin, **report.versions},
    }
