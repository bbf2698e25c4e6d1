"""Report, gate and card of a variant whose weights stay, made anew from what its manifest says now.

Measures only what the manifest asks for otherwise than before. Compresses nothing.
"""

from collections.abc import Sequence
from pathlib import Path

from hubplugin import adapter_parent, provenance, report, report_assembly, variant_folder, writing
from hubplugin.checkpoint.resume import Fingerprint
from hubplugin.disk import write_atomically
from hubplugin.errors import GateError
from hubplugin.evaluation import gate
from hubplugin.evaluation.speed import machine
from hubplugin.job import Engines, Folders, Job
from hubplugin.manifest.metrics import Thresholds
from hubplugin.plan.draft import DraftPlan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress
from hubplugin.report import Evaluation, GateLine, Report, Speed
from hubplugin.report_assembly import Judged
from hubplugin.task_record import Tasks
from hubplugin.variant_folder import MANIFEST

MEASURED = (gate.QUALITY, gate.TASKS, gate.SPEED)  # lines about numbers that are measured beside the gate


def renew(
    job: Job, variant: VariantPlan, folder: Path, made: Report, engines: Engines, thorough: bool = False
) -> Report:
    """Judge a finished folder by its manifest, and write report, manifest and card where they say something else.

    What passed its gate is not checked again, but for the thresholds; `thorough` checks everything again.
    """
    with adapter_parent.together(variant, folder) as model:
        judged = _judge(job, variant, Folders(folder, model), made, engines, thorough)
    adapter_parent.name(job.document.manifest, variant, folder)
    write_atomically(folder / MANIFEST, job.document.text)
    renewed = report_assembly.renew(made, job, variant, folder, judged)
    if renewed == made and writing.written(renewed, folder):
        progress(f"{variant.name}: already made from this manifest and revision, kept")
        return renewed
    writing.write(renewed, folder)
    progress(f"{variant.name}: weights kept, report and card written anew")
    return renewed


def refuse_others(job: Job, draft: DraftPlan, folder: Path) -> Report:
    """The report of a variant that was made from what the manifest says now. Raises GateError for any other."""
    made = variant_folder.finished(folder)
    if made is None:
        raise GateError(str(folder), "holds no whole variant", "make it with `hubplugin run`")
    if changed := provenance.other_weights(job, draft, made):
        raise GateError(str(folder), f"was made from another {', '.join(changed)}", "make it anew with `hubplugin run`")
    return made


def of_other_parent(made: Report, out: Path) -> bool:
    """Whether an adapter was made for other weights than now stand in the folder of the variant that it is for."""
    if made.adapter is None:
        return False
    files = report.read(out / made.adapter.variant).files
    return any(files.get(name) != digest for name, digest in made.adapter.weights.items())


def _judge(job: Job, variant: VariantPlan, folders: Folders, made: Report, engines: Engines, thorough: bool) -> Judged:
    numbers = provenance.of_numbers(job)
    stale = numbers.changed(Fingerprint(made.measured_from))
    evaluation = job.measure(variant, folders.model) if stale else made.evaluation
    speed = _speed(job, variant, folders.model, made, engines)
    tasks = _tasks(job, variant, folders.model, made)
    lines = _at_thresholds(made.gate, evaluation, tasks, speed, job.document.manifest.gate.of(variant.name))
    if thorough or any(not line.passed for line in lines if line.name not in MEASURED):
        prompts = [list(prompt) for prompt in made.prompts]
        candidate = job.candidate(
            variant,
            folders,
            samples={},
            evaluation=evaluation,
            tasks=tasks,
            speed=speed,
            generate=engines.generate,
            prompts=prompts,
        )
        lines = gate.check_again(candidate, made.gate)
    if lines != made.gate:
        announce(lines)
    return Judged(evaluation, tasks, speed, numbers, lines)


def _speed(job: Job, variant: VariantPlan, folder: Path, made: Report, engines: Engines) -> Speed | None:
    """The speed as the manifest asks for it now. What could not be measured before is tried again: on another machine
    it may be, and on the same one it costs little. A data type of the KV cache that could not is, on another machine
    alone, with all else: a record is of one machine."""
    asked, before = provenance.of_speed(job), made.speed
    if before is None or before.not_measured or asked.changed(Fingerprint(before.measured_from)):
        return timed(job, variant, folder, engines)
    missing = any(cache.not_measured for cache in before.kv_caches)
    return timed(job, variant, folder, engines) if missing and not machine.same(before.machine) else before


def _tasks(job: Job, variant: VariantPlan, folder: Path, made: Report) -> Tasks | None:
    """The answers to tasks as the manifest asks for them now."""
    asked, before = provenance.of_tasks(job), made.tasks
    if before and not asked.changed(Fingerprint(before.measured_from)):
        return before
    return answered(job, variant, folder)


def answered(job: Job, variant: VariantPlan, folder: Path) -> Tasks | None:
    """The answers to tasks, with what decided them; None where the manifest asks for none."""
    tasks = job.ask(variant, folder)
    return tasks.model_copy(update={"measured_from": dict(provenance.of_tasks(job).digests)}) if tasks else None


def timed(job: Job, variant: VariantPlan, folder: Path, engines: Engines) -> Speed | None:
    """The speed, with what decided it; None where the manifest asks for none."""
    speed = job.time(variant, folder, engines)
    return speed.model_copy(update={"measured_from": dict(provenance.of_speed(job).digests)}) if speed else None


def _at_thresholds(
    lines: Sequence[GateLine],
    evaluation: Evaluation | None,
    tasks: Tasks | None,
    speed: Speed | None,
    thresholds: Thresholds,
) -> tuple[GateLine, ...]:
    """Lines of an earlier gate, those about measured numbers anew: tasks and speed behind the one about quality."""
    judged = (
        gate.judge(evaluation, thresholds),
        gate.judge_tasks(tasks, thresholds),
        gate.judge_speed(speed, thresholds),
    )
    found: list[GateLine] = []
    for line in lines:
        if line.name == gate.QUALITY:
            found += [anew for anew in judged if anew]
        elif line.name not in MEASURED:
            found.append(line)
    return tuple(found)


def announce(lines: Sequence[GateLine]) -> None:
    """One line of progress for each line of a gate."""
    for line in lines:
        progress(f"gate {'passed' if line.passed else 'FAILED'} | {line.name}: {line.detail}")
