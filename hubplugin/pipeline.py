"""The whole arrow: pull, plan, calibrate, then for each variant search, compress, recover, evaluate, gate, card.

Knows the order of stages, each of which leaves its result in a folder, so that a killed run goes on; no mathematics.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hubplugin import (
    adapter_parent,
    decisions,
    interrupt,
    memory,
    passes,
    provenance,
    renewal,
    report,
    report_assembly,
    sharing,
    siblings,
    variant_folder,
    writing,
)
from hubplugin.clock import Clock
from hubplugin.compress.gptqmodel import backend
from hubplugin.evaluation import engine_choice, gate, generation
from hubplugin.evaluation.speed.kv_caches import Serve
from hubplugin.evaluation.speed.rounds import TakeTurn
from hubplugin.job import Engines, Folders, Job
from hubplugin.manifest.methods import factorization_of
from hubplugin.manifest.schema import Document
from hubplugin.plan.adapters import drafting
from hubplugin.plan.draft import DraftPlan, Plan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress
from hubplugin.report import Report
from hubplugin.report_assembly import Findings
from hubplugin.sharing import Spent
from hubplugin.variant_folder import MANIFEST


@interrupt.remembered()
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
        spent = sharing.begin(job, (draft for draft in job.plan.drafts if kept[draft.name] is None), out)
        for draft in job.plan.drafts:
            made, draft = kept[draft.name], _on_parent(draft, out)
            if made and renewal.of_other_parent(made, out):
                made = None
            if made:
                reports.append(_renew(job, draft, out, made, engines))
            else:
                reports.append(make(job, draft, out, engines, spent.get(draft.name)))
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
        _renew(job, _on_parent(draft, out), out, kept, engines, thorough)
        for draft, kept in zip(job.plan.drafts, made, strict=True)
    ]
    reports = siblings.relate(reports, out)
    report.refuse_failed(reports)
    return reports


def _on_parent(draft: DraftPlan, out: Path) -> DraftPlan:
    """The draft of an adapter on the variant that it is for as that was settled, which is finished; any other as it
    is."""
    if draft.parent is None:
        return draft
    made = report.read(out / draft.parent.name)
    return drafting.on(draft, decisions.settle(draft.parent, made.shaping, made.allocation, made.ranking))


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
    variant = decisions.settle(draft, made.shaping, made.allocation, made.ranking)
    return renewal.renew(job, variant, out / draft.name, made, engines, thorough)


def one(job: Job, draft: DraftPlan, out: Path, engines: Engines) -> Report:
    """One variant, as `run` treats it: kept or renewed where its weights stand, else made. Raises no GateError."""
    made = _kept(job, draft, out / draft.name)
    return _renew(job, draft, out, made, engines) if made else make(job, draft, out, engines)


def make(job: Job, draft: DraftPlan, out: Path, engines: Engines, before: Spent | None = None) -> Report:
    """Make one variant: a folder with weights, config, tokenizer, manifest, report and card.

    `before` is what was spent on it already, side by side with other variants.
    """
    job.prepare()
    made_from, measured_from = provenance.of_weights(job, draft), provenance.of_numbers(job)
    staging = variant_folder.begin(variant_folder.making(out, draft.name))
    clock = Clock({**job.clock.seconds, **(before.clock.seconds if before else {})})
    memory.reset_peak()
    measured = before.measured if before else decisions.measured(job, draft, staging, clock)
    variant, shaping, allocation = measured
    begun, ranking = _begin_and_rank(job, draft, variant, staging, clock)
    variant = decisions.settle(draft, shaping, allocation, ranking) if ranking else variant
    known = report_assembly.known(job, variant)
    with clock.stage(passes.STAGE):
        weights = passes.compress(job, variant, staging, begun)
    if before:
        weights = replace(weights, peak=max(weights.peak, before.peak))
    adapter_parent.name(job.document.manifest, variant, staging)
    with adapter_parent.together(variant, staging) as model:
        numbers = _measured(job, variant, Folders(staging, model), weights, engines, clock)
    variant_folder.drop_work(staging)
    (staging / MANIFEST).write_text(job.document.text, encoding="utf-8")
    findings = Findings(
        weights=weights,
        shaping=shaping,
        allocation=allocation,
        ranking=ranking,
        seconds=clock.seconds,
        made_from=made_from,
        measured_from=measured_from,
        **numbers,
    )
    made = report_assembly.assemble(job, known, variant, staging, findings)
    writing.write(made, staging)
    variant_folder.finish(staging, out / variant.name)
    renewal.announce(made.gate)
    return made


def _measured(
    job: Job, variant: VariantPlan, folders: Folders, weights: report_assembly.Weights, engines: Engines, clock: Clock
) -> dict[str, Any]:
    """What is measured and judged of a finished folder, by the fields of `Findings`."""
    evaluation = None
    if job.reference:
        with clock.stage("evaluation"):
            evaluation = job.measure(variant, folders.model)
    with clock.stage("tasks") if provenance.of_tasks(job).digests else nullcontext():
        tasks = renewal.answered(job, variant, folders.model)
    with clock.stage("speed") if provenance.of_speed(job).digests else nullcontext():
        speed = renewal.timed(job, variant, folders.model, engines)
    measured, prompts = {"evaluation": evaluation, "tasks": tasks, "speed": speed}, _prompts(job)
    with clock.stage("gate"):
        candidate = job.candidate(
            variant, folders, samples=weights.samples, generate=engines.generate, prompts=prompts, **measured
        )
        lines = gate.check(candidate)
    return {**measured, "gate": lines, "prompts": tuple(tuple(prompt) for prompt in prompts)}


def _begin_and_rank(
    job: Job, draft: DraftPlan, variant: VariantPlan, folder: Path, clock: Clock
) -> tuple[passes.Begun | None, report.Ranking | None]:
    """What stands before factors are made, and their ranks; nothing of both for a variant without factors."""
    begun = None
    if factorization_of(variant.steps) is None:
        return None, None
    if variant.passes:
        with clock.stage("compress before factors"):
            begun = passes.begin(job, variant, folder)
    with clock.stage("ranks"):
        return begun, decisions.rank(job, draft, variant, begun[1] if begun else job.snapshot.path, folder)


def _prompts(job: Job) -> list[list[int]]:
    """The starts of the first sequences at hand: text the model should continue with confidence."""
    ids = job.reference.tokens if job.reference else job.calibration.ids
    return [row[: gate.PROMPT_TOKENS].tolist() for row in torch.as_tensor(ids)[:2]]
