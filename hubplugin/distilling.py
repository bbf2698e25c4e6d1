"""A distill step of one variant: which student learns from whom, on what, and what the report says of it.

Knows the job and the rooms that train; no mathematics.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from hubplugin import report, report_assembly
from hubplugin.checkpoint.model_folder import read_json
from hubplugin.compress import stages
from hubplugin.compress.calibration import vocabulary
from hubplugin.compress.calibration.calibration_data import TokenSequences
from hubplugin.hub.snapshots import Snapshot
from hubplugin.job import RECOVERY, Job
from hubplugin.manifest.steps.training.distill import Distill
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.recovery import recover
from hubplugin.recovery.answers import asking, learning, rows
from hubplugin.recovery.answers.asking import Teacher
from hubplugin.recovery.answers.endpoint import Endpoint
from hubplugin.recovery.answers.in_process import InProcess
from hubplugin.variant_folder import ANSWERS, RECOVERED


def run(job: Job, variant: VariantPlan, step: Distill, student: Path, work: Path) -> report.Distillation:
    """Train a student's folder, and write it to RECOVERED under `work`, the variant's folder in the making."""
    learn = _from_predictions if step.answers is None else _from_answers
    made = learn(job, variant, step, student, work)
    remote = step.answers is not None and step.answers.endpoint is not None
    origins = {
        "teacher": None if remote else _origin(job.teacher(step)),
        "student": _origin(job.start(variant.steps)) if step.student else None,
    }
    return made.model_copy(update=origins)


def _origin(snapshot: Snapshot) -> report.Base:
    return report_assembly.origin(snapshot, read_json(snapshot.path / "config.json", snapshot.repo))


def _from_predictions(job: Job, variant: VariantPlan, step: Distill, student: Path, work: Path) -> report.Distillation:
    """White box: the teacher is run beside the student."""
    teacher = job.teacher(step).path
    text = _text(job, step, teacher)
    pruned = not variant.trains_first and step.teacher is None
    ends = stages.stands_for(variant, job.plan.config["num_hidden_layers"]) if pruned else None
    made = recover.run(student, teacher, work / RECOVERED, text.ids, step, ends)
    shared = {
        name: getattr(made, name) for name in report.Distillation.model_fields.keys() & report.Recovery.model_fields
    }
    held_out = {"before": made.kl_before, "after_blocks": made.kl_blocks, "after": made.kl_after}
    known = {"measured": "KL", "teacher": None, "student": None, "data": text.description if step.data else None}
    return report.Distillation(**{**shared, **held_out, **known})


def _text(job: Job, step: Distill, teacher: Path) -> TokenSequences:
    """What a student learns from: calibration text, or the step's own; what samples itself is the teacher."""
    if step.data is None:
        return job.calibration
    if not (step.data.self_ and step.teacher):
        return job.tokens(RECOVERY, step.data)
    batch = job.tokens(RECOVERY, step.data, teacher)
    description = batch.description.model_copy(update={"source": "samples of the teacher itself"})
    return TokenSequences(batch.ids, description)


def _from_answers(job: Job, variant: VariantPlan, step: Distill, student: Path, work: Path) -> report.Distillation:
    """Black box: the teacher is asked once, before; its answers stay beside the variants for later runs."""
    settings, source = step.answers, step.data or job.document.manifest.calibrate
    assert settings is not None
    prompts = job.prompts(step)
    teacher: Callable[[], Teacher]
    if settings.endpoint:
        endpoint = Endpoint(settings)
        name, identity, teacher = endpoint.name, endpoint.identity, partial(Endpoint, settings)
    else:
        snapshot = job.teacher(step)
        name, identity = snapshot.repo, job.named_fingerprint(step.teacher) if step.teacher else job.base_fingerprint
        teacher = partial(InProcess, snapshot.path, name, settings, source.sequence_length)
    file = work.parent / ANSWERS / f"{variant.name}.jsonl"
    given = asking.ask(prompts.prompts, settings, identity, file, teacher)
    tokenizer, embedding = read_tokenizer(student), vocabulary.rows_of(student)
    taught = rows.rows(prompts.prompts, given, tokenizer, embedding, source.sequence_length)
    made = learning.run(student, work / RECOVERED, taught, step)
    answers = report.Answers(
        by=name,
        prompts=prompts.description,
        asked=len(given),
        ended=sum(answer.ended for answer in given),
        left_out=taught.left_out,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        sha256=taught.sha256,
    )
    return made.model_copy(update={"answers": answers, "data": prompts.texts if step.data else None})
