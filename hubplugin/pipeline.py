"""The whole arrow: pull, plan, calibrate, then for each variant search, compress, recover, evaluate, gate, card.

Knows the order of stages, each of which leaves its result in a folder, so that a killed run goes on; no mathematics.
"""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from hubplugin import memory, provenance, renewal, report, report_assembly, siblings, variant_folder, writing
from hubplugin.checkpoint import model_folder, resume
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
from hubplugin.compress import stages
from hubplugin.compress.gptqmodel import backend
from hubplugin.compress.search import bit_allocation, pruning_search
from hubplugin.evaluation import engine_choice, gate, generation
from hubplugin.evaluation.speed.kv_caches import Serve
from hubplugin.evaluation.speed.rounds import TakeTurn
from hubplugin.job import RECOVERY, Clock, Engines, Job
from hubplugin.manifest.methods import quantization_of, recovery_of, tuning_of
from hubplugin.manifest.schema import Document
from hubplugin.manifest.steps.training import Training
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import computing_dtype
from hubplugin.plan import table
from hubplugin.plan.draft import DraftPlan, Plan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress
from hubplugin.recovery import recover
from hubplugin.report import Report
from hubplugin.report_assembly import Findings, Weights
from hubplugin.variant_folder import MANIFEST, PRUNED, QUANTIZED, RECOVERED, TUNED


def run(
    document: Document,
    planned: Plan,
    out: Path,
    generate: generation.Generate,
    take_turn: TakeTurn = engine_choice.take_turn,
    serve_cache: Serve = engine_choice.serve_cache,
) -> list[Report]:
    """Make every variant of a manifest under `out`/<variant>.

    Weights that were made from the same base, steps and data are kept, and so are numbers that were measured on the
    same text: of such variants only report and card are written anew, where the manifest says something else now.
    `generate` is the engine that the gate asks for a few tokens, `take_turn` the one whose speed is measured,
    `serve_cache` the same with one data type of its KV cache. Raises GateError after all variants are made, where one
    of them did not pass.
    """
    job, engines = Job(document, planned), Engines(generate, take_turn, serve_cache)
    kept = {draft.name: _kept(job, draft, out / draft.name) for draft in job.plan.drafts}
    backend.require(draft.estimate for draft in job.plan.drafts if kept[draft.name] is None)
    reports = []
    try:
        for draft in job.plan.drafts:
            made = kept[draft.name]
            reports.append(_renew(job, draft, out, made, engines) if made else make(job, draft, out, engines))
    except (KeyboardInterrupt, SystemExit):
        say_what_is_kept(job.plan, out)
        raise
    reports = siblings.relate(reports, out)
    report.refuse_failed(reports)
    return reports


def say_what_is_kept(planned: Plan, out: Path) -> None:
    """The last word of a run that is told to end: what the same command will take up."""
    parts = [variant_folder.standing(out, variant.name, variant.dims.layers) for variant in planned.variants]
    kept = ", ".join(part for part in parts if part) or "nothing is finished yet"
    progress(f"kept: {kept}; the same command goes on from there")


def judge(
    document: Document,
    planned: Plan,
    out: Path,
    generate: generation.Generate,
    take_turn: TakeTurn = engine_choice.take_turn,
    thorough: bool = True,
    serve_cache: Serve = engine_choice.serve_cache,
) -> list[Report]:
    """Gate, report and card of variants that are finished; nothing is compressed.

    `thorough` checks everything again that can be checked in a finished folder, also where it passed before. Raises
    GateError where a variant is missing, was made from something else, or does not pass.
    """
    job, engines = Job(document, planned), Engines(generate, take_turn, serve_cache)
    made = [renewal.refuse_others(job, draft, out / draft.name) for draft in job.plan.drafts]
    reports = [
        _renew(job, draft, out, kept, engines, thorough) for draft, kept in zip(job.plan.drafts, made, strict=True)
    ]
    reports = siblings.relate(reports, out)
    report.refuse_failed(reports)
    return reports


def _kept(job: Job, draft: DraftPlan, folder: Path) -> Report | None:
    """The report of a finished variant, or None where it must be made (again), which is said."""
    made = variant_folder.finished(folder)
    if made is None:
        return None
    if changed := provenance.other_weights(job, draft, made):
        progress(f"{draft.name}: was made from another {', '.join(changed)}, is made again")
        return None
    damaged = any(line.name == gate.AS_COMPRESSED and not line.passed for line in made.gate)
    return None if damaged else made


def _renew(job: Job, draft: DraftPlan, out: Path, made: Report, engines: Engines, thorough: bool = False) -> Report:
    variant = _settle(draft, made.shaping, made.allocation)
    return renewal.renew(job, variant, out / draft.name, made, engines, thorough)


def make(job: Job, draft: DraftPlan, out: Path, engines: Engines) -> Report:
    """Make one variant: a folder with weights, config, tokenizer, manifest, report and card."""
    job.prepare()
    made_from, measured_from = provenance.of_weights(job, draft), provenance.of_numbers(job)
    staging = variant_folder.begin(out / f".{draft.name}.part")
    clock = Clock(dict(job.clock.seconds))
    memory.reset_peak()
    shaping = allocation = evaluation = None
    if draft.space:
        with clock.stage("shape"):
            shaping = _shape(job, draft, staging)
    if draft.budget:
        with clock.stage("allocation"):
            allocation = _allocate(job, draft, staging)
    variant = _settle(draft, shaping, allocation)
    known = report_assembly.known(job, variant)
    with clock.stage("compress and export"):
        weights = _compress(job, variant, staging)
    if job.reference:
        with clock.stage("evaluation"):
            evaluation = job.measure(variant, staging)
    with clock.stage("tasks") if provenance.of_tasks(job).digests else nullcontext():
        tasks = renewal.answered(job, variant, staging)
    with clock.stage("speed") if provenance.of_speed(job).digests else nullcontext():
        speed = renewal.timed(job, variant, staging, engines)
    measured, prompts = {"evaluation": evaluation, "tasks": tasks, "speed": speed}, _prompts(job)
    with clock.stage("gate"):
        candidate = job.candidate(
            variant, staging, samples=weights.samples, generate=engines.generate, prompts=prompts, **measured
        )
        lines = gate.check(candidate)
    variant_folder.drop_work(staging)
    (staging / MANIFEST).write_text(job.document.text, encoding="utf-8")
    findings = Findings(
        weights=weights,
        shaping=shaping,
        allocation=allocation,
        evaluation=evaluation,
        tasks=tasks,
        speed=speed,
        gate=lines,
        prompts=tuple(tuple(prompt) for prompt in prompts),
        seconds=clock.seconds,
        made_from=made_from,
        measured_from=measured_from,
    )
    made = report_assembly.assemble(known, variant, staging, findings)
    writing.write(made, staging)
    variant_folder.finish(staging, out / variant.name)
    renewal.announce(lines)
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
    path, fingerprint = folder / resume.BLOCKS / pruning_search.FILE_NAME, provenance.of_blocks(job, estimate)
    decision = resume.Decision(path, fingerprint, report.Shaping)
    with stages.spilling(estimate, folder) as spill:
        return decision.load_or_make(partial(pruning_search.search, model, job.calibration.ids, goal, spill))


def _allocate(job: Job, draft: DraftPlan, folder: Path) -> report.Allocation:
    """The budget, spent by measurements on the base. In float32: what a single linear changes is small."""
    model = Model(DenseView(job.snapshot.path), job.plan.config, job.plan.family)
    estimate, budget, tokens = draft.estimate, draft.budget, job.calibration.ids
    step = quantization_of(estimate.steps)
    assert step is not None and budget is not None
    path, fingerprint = folder / resume.BLOCKS / bit_allocation.FILE_NAME, provenance.of_blocks(job, estimate)
    decision = resume.Decision(path, fingerprint, report.Allocation)
    with stages.spilling(estimate, folder) as spill:
        allocation = decision.load_or_make(partial(bit_allocation.allocate, model, tokens, budget, step, spill))
    progress(f"{draft.name} | {len(allocation.units)} units allocated, KL of {allocation.predicted_kl:.5f} predicted")
    return allocation


def _compress(job: Job, variant: VariantPlan, out: Path) -> Weights:
    """Weights, config.json and tokenizer in `out`: what passes over the blocks make, and tuning makes of that."""
    step = tuning_of(variant.steps)
    weights, dense = _passes(job, variant, out, out / QUANTIZED if step else out)
    if step is None:
        return weights
    tuning = _train(job, variant, step, out / QUANTIZED, out / TUNED, dense)
    model_folder.copy(model_folder.listing(out / TUNED), out / TUNED, out)
    return replace(weights, samples=stages.stored_samples(out, variant), peak=memory.peak(), tuning=tuning)


def _passes(job: Job, variant: VariantPlan, work: Path, out: Path) -> tuple[Weights, Path]:
    """Weights, config.json and tokenizer in `out`, by one pass over the blocks, or a pass, recovery, and a pass.

    Also the folder that the last pass read. Those of earlier passes are in `work`.
    """
    base, tokens, fingerprint = job.snapshot.path, job.calibration.ids, provenance.of_blocks(job, variant)
    if not variant.passes:
        result = stages.run_pass(base, variant, tokens, out, fingerprint)
        return Weights(result.results, result.samples, result.peak), base
    pruning, *later = variant.passes
    first, source, recovery = stages.run_pass(base, pruning, tokens, work / PRUNED, fingerprint), work / PRUNED, None
    if step := recovery_of(variant.steps):
        recovery, source = _train(job, variant, step, source, work / RECOVERED), work / RECOVERED
    if later:
        second = stages.run_pass(source, later[0], tokens, out, fingerprint)
        results, peak = [*first.results, *second.results], max(first.peak, second.peak)
        return Weights(results, second.samples, peak, recovery), source
    model_folder.copy(model_folder.listing(source), source, out)  # folders of an interrupted run are not listed
    return Weights(first.results, stages.stored_samples(out, variant), memory.peak(), recovery), source


def _train(
    job: Job, variant: VariantPlan, step: Training, student: Path, out: Path, dense: Path | None = None
) -> report.Recovery:
    """Train a folder towards the base, on text of its own where the step names some."""
    base, ends = job.snapshot.path, stages.stands_for(variant, job.plan.config["num_hidden_layers"])
    if step.data is None:
        return recover.run(student, base, out, job.calibration.ids, step, ends, dense)
    batch = job.tokens(RECOVERY, step.data)
    recovery = recover.run(student, base, out, batch.ids, step, ends, dense)
    return recovery.model_copy(update={"data": batch.description})


def _prompts(job: Job) -> list[list[int]]:
    """The starts of the first sequences at hand: text the model should continue with confidence."""
    ids = job.reference.tokens if job.reference else job.calibration.ids
    return [row[: gate.PROMPT_TOKENS].tolist() for row in torch.as_tensor(ids)[:2]]
