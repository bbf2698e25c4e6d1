"""The whole arrow: pull, plan, calibrate, then for each variant search, compress, recover, evaluate, gate, card.

Knows the order of stages, each of which leaves its result in a folder, so that a killed run goes on; no mathematics.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

import hubplugin
from hubplugin import memory, report, report_assembly, variant_folder
from hubplugin.checkpoint import resume
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
from hubplugin.compress import stages
from hubplugin.compress.calibration import calibration_data, vocabulary
from hubplugin.compress.calibration.calibration_data import TokenSequences
from hubplugin.compress.calibration.tokenizer_files import read_tokenizer
from hubplugin.compress.gptqmodel import backend
from hubplugin.compress.search import bit_allocation, pruning_search
from hubplugin.disk import digest
from hubplugin.evaluation import gate, generation, quality_metrics
from hubplugin.evaluation.cards import card
from hubplugin.hub import snapshots
from hubplugin.manifest.methods import quantization_of, recovery_of
from hubplugin.manifest.schema import Document, Manifest
from hubplugin.manifest.source import Source
from hubplugin.manifest.steps.recover import Recover
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import computing_dtype
from hubplugin.plan import table
from hubplugin.plan.draft import DraftPlan, Plan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress
from hubplugin.recovery import recover
from hubplugin.report import Report
from hubplugin.report_assembly import Clock, Findings, Job, Weights
from hubplugin.variant_folder import PRUNED, RECOVERED

CARD = "README.md"
MANIFEST = "manifest.yaml"
USES = {"calibrate": "calibration", "evaluate.perplexity": "evaluation"}  # of sources, by place; others are recovery's


def run(document: Document, planned: Plan, out: Path, generate: generation.Generate) -> list[Report]:
    """Make every variant of a manifest under `out`/<variant>. Finished, unchanged variants are kept as they are.

    `generate` is the engine that the gate asks for a few tokens. Raises GateError after all variants are made, where
    one of them did not pass.
    """
    reports, job = [], None
    for draft in planned.drafts:
        kept = variant_folder.finished(out / draft.name, document, planned.revision)
        if kept is None:
            job = job or prepare(document, planned)
            kept = make(job, draft, out, generate)
        else:
            progress(f"{draft.name}: already made from this manifest and revision, kept")
        reports.append(kept)
    report.refuse_failed(reports)
    return reports


def prepare(document: Document, planned: Plan) -> Job:
    """Pull the base, make calibration and evaluation tokens, measure the base."""
    backend.require(planned.variants)
    clock, manifest = Clock(), document.manifest
    pinned = f"{manifest.model.split('@')[0]}@{planned.revision}" if planned.revision else manifest.model
    with clock.stage("pull"):
        snapshot = snapshots.pull(pinned, document.folder)
    base, folder, tokenizer = snapshot.path, document.folder, read_tokenizer(snapshot.path)
    with clock.stage("calibration data"):
        read = _read_data(manifest, tokenizer, folder, base)
    reference = None
    if manifest.evaluate:
        with clock.stage("evaluation of the base"):
            batch = read[manifest.evaluate.perplexity, False]
            reference = quality_metrics.reference(base, planned.family, batch.ids, batch.description)
    return Job(document, snapshot, planned, read[manifest.calibrate, True], reference, clock.seconds, read)


def _read_data(
    manifest: Manifest, tokenizer: Any, folder: Path, base: Path
) -> dict[tuple[Source, bool], TokenSequences]:
    """The tokens of all sources, by source and whether shuffled, without those that recovery samples from the base.

    Data is read before the base is sampled, so that data which cannot be used is refused before any work.
    """
    note = vocabulary.note(tokenizer, vocabulary.rows_of(base))
    if note:
        progress(f"note: {note}; text that holds one of them is refused")
    read: dict[tuple[Source, bool], TokenSequences] = {}
    for place, source in sorted(manifest.sources(), key=lambda pair: pair[1].self_):
        use = USES.get(place, "recovery data")
        key = (source, use != "evaluation")
        if key not in read and (place in USES or not source.self_):
            progress(f"{use}: {source.describe()}")
            read[key] = calibration_data.tokens(source, tokenizer, folder, base, shuffle=key[1])
    return read


def make(job: Job, draft: DraftPlan, out: Path, generate: generation.Generate) -> Report:
    """Make one variant: a folder with weights, config, tokenizer, manifest, report and card."""
    staging, manifest = variant_folder.begin(out / f".{draft.name}.part"), job.document.manifest
    clock = Clock(dict(job.seconds))
    memory.reset_peak()
    shaping = allocation = evaluation = None
    if draft.space:
        with clock.stage("shape"):
            shaping = _shape(job, draft, staging)
    if draft.budget:
        with clock.stage("allocation"):
            allocation = _allocate(job, draft, staging)
    variant = _settle(draft, shaping, allocation)
    with clock.stage("compress and export"):
        weights = _compress(job, variant, staging)
    if job.reference and manifest.evaluate:
        with clock.stage("evaluation"):
            evaluation = quality_metrics.measure(staging, variant.family, job.reference, manifest.evaluate.kl)
    with clock.stage("gate"):
        candidate = gate.Candidate(
            folder=staging,
            base=job.snapshot.path,
            plan=variant,
            samples=weights.samples,
            evaluation=evaluation,
            thresholds=manifest.gate.of(variant.name),
            generate=generate,
            prompts=_prompts(job),
        )
        lines = gate.check(candidate)
    variant_folder.drop_work(staging)
    (staging / MANIFEST).write_text(job.document.text, encoding="utf-8")
    findings = Findings(weights, shaping, allocation, evaluation, lines, clock.seconds)
    made = report_assembly.assemble(job, variant, staging, findings)
    report.write(made, staging)
    (staging / CARD).write_text(card.render(made), encoding="utf-8")
    variant_folder.finish(staging, out / variant.name)
    for line in lines:
        progress(f"gate {'passed' if line.passed else 'FAILED'} | {line.name}: {line.detail}")
    return made


def _settle(draft: DraftPlan, shaping: report.Shaping | None, allocation: report.Allocation | None) -> VariantPlan:
    """The variant with what measurements have decided."""
    shape = pruning_search.shape_of(shaping) if shaping else None
    schemes = bit_allocation.schemes(draft.budget, allocation) if draft.budget and allocation else None
    variant = draft.settle(shape=shape, schemes=schemes)
    if shaping:
        kl = f"KL of {shaping.predicted_kl:.4f} predicted before refitting"
        progress(f"{variant.name} | {table.shape(variant)}, {kl}")
    return variant


def _shape(job: Job, draft: DraftPlan, folder: Path) -> report.Shaping:
    """What is pruned, decided by measurements on the base."""
    assert draft.space is not None
    estimate, base = draft.estimate, draft.recipe.base
    stored = TORCH_DTYPES[job.plan.tensors[f"{estimate.linears[0].name}.weight"].dtype]
    model = Model(DenseView(job.snapshot.path), job.plan.config, job.plan.family, computing_dtype(stored))
    goal = pruning_search.Goal(draft.space, base.outside_linears, f"{draft.recipe.where}[0]")
    path, fingerprint = folder / resume.BLOCKS / pruning_search.FILE_NAME, _fingerprint(job, estimate)
    decision = resume.Decision(path, fingerprint, report.Shaping)
    with stages.spilling(estimate, folder) as spill:
        return decision.load_or_make(partial(pruning_search.search, model, job.calibration.ids, goal, spill))


def _allocate(job: Job, draft: DraftPlan, folder: Path) -> report.Allocation:
    """The budget, spent by measurements on the base. In float32: what a single linear changes is small."""
    model = Model(DenseView(job.snapshot.path), job.plan.config, job.plan.family)
    estimate, budget, tokens = draft.estimate, draft.budget, job.calibration.ids
    step = quantization_of(estimate.steps)
    assert step is not None and budget is not None
    path, fingerprint = folder / resume.BLOCKS / bit_allocation.FILE_NAME, _fingerprint(job, estimate)
    decision = resume.Decision(path, fingerprint, report.Allocation)
    with stages.spilling(estimate, folder) as spill:
        allocation = decision.load_or_make(partial(bit_allocation.allocate, model, tokens, budget, step, spill))
    progress(f"{draft.name} | {len(allocation.units)} units allocated, KL of {allocation.predicted_kl:.5f} predicted")
    return allocation


def _compress(job: Job, variant: VariantPlan, out: Path) -> Weights:
    """Weights, config.json and tokenizer in `out`, by one pass over the blocks, or a pass, recovery, and a pass."""
    base, tokens, fingerprint = job.snapshot.path, job.calibration.ids, _fingerprint(job, variant)
    if not variant.passes:
        result = stages.run_pass(base, variant, tokens, out, fingerprint)
        return Weights(result.results, result.samples, result.peak)
    pruning, *later = variant.passes
    first, source, recovery = stages.run_pass(base, pruning, tokens, out / PRUNED, fingerprint), out / PRUNED, None
    if step := recovery_of(variant.steps):
        recovery, source = _recover(job, variant, step, source, out / RECOVERED), out / RECOVERED
    if later:
        second = stages.run_pass(source, later[0], tokens, out, fingerprint)
        return Weights([*first.results, *second.results], second.samples, max(first.peak, second.peak), recovery)
    for file in (file for file in source.iterdir() if file.name != resume.TRAINING):
        shutil.copyfile(file, out / file.name)
    return Weights(first.results, stages.stored_samples(out, variant), memory.peak(), recovery)


def _recover(job: Job, variant: VariantPlan, step: Recover, student: Path, out: Path) -> report.Recovery:
    """Train a pruned folder towards the base, on text of its own where the step names some."""
    base, ends = job.snapshot.path, stages.stands_for(variant, job.plan.config["num_hidden_layers"])
    if step.data is None:
        return recover.run(student, base, out, job.calibration.ids, step, ends)
    progress(f"recovery: {step.data.describe()}")
    batch = job.read.get((step.data, True))
    if batch is None:
        batch = calibration_data.tokens(step.data, read_tokenizer(base), job.document.folder, base)
    recovery = recover.run(student, base, out, batch.ids, step, ends)
    return recovery.model_copy(update={"data": batch.description})


def _fingerprint(job: Job, variant: VariantPlan) -> resume.Fingerprint:
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
