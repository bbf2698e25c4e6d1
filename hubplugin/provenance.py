"""What a variant's weights and its numbers are made from: another of any of these makes others.

Decides what a run may keep. An edit of the manifest that changes none of it (a comment, `publish:`, `gate:`, another
variant) makes nothing anew but report and card. Knows digests; computes nothing else and changes nothing.
"""

import json
from collections.abc import Sequence

import hubplugin
from hubplugin.checkpoint.resume import Fingerprint
from hubplugin.disk import digest
from hubplugin.job import Job
from hubplugin.manifest.methods import adapting_of, distillation_of, recovery_of, tuning_of
from hubplugin.manifest.schema import Step
from hubplugin.manifest.steps.adapter import Lora
from hubplugin.plan.draft import DraftPlan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import Report

RELEASE = "release of hubplugin"


def of_weights(job: Job, draft: DraftPlan) -> Fingerprint:
    """Of a variant's weights, config.json and tokenizer. Known before any token sequence is made."""
    steps = draft.recipe.steps
    digests = {
        "base": job.base_fingerprint,
        "steps": _steps(steps),
        "calibration data": job.source_digest(job.document.manifest.calibrate),
        RELEASE: hubplugin.__version__,
        **_named(job, steps),
    }
    if (step := recovery_of(steps)) and step.data:
        digests["recovery data"] = job.source_digest(step.data)
    if (tune := tuning_of(steps)) and tune.data:
        digests["tuning data"] = job.source_digest(tune.data)
    if isinstance(adapting := adapting_of(steps), Lora) and adapting.data:
        digests["training data"] = job.source_digest(adapting.data)
    if draft.parent:
        digests["variant that it is for"] = digest(json.dumps(dict(of_weights(job, draft.parent).digests)))
    return Fingerprint(digests)


def other_weights(job: Job, draft: DraftPlan, made: Report) -> list[str]:
    """What a finished variant was made from otherwise than it would be now, in words; empty where its weights stay."""
    return of_weights(job, draft).changed(Fingerprint(made.made_from))


def of_numbers(job: Job) -> Fingerprint:
    """Of what is measured of a variant, beside its weights. Empty where the manifest evaluates nothing."""
    evaluate = job.document.manifest.evaluate
    if evaluate is None:
        return Fingerprint()
    data = [job.source_digest(source) for source in evaluate.sources]
    settings = evaluate.model_dump(mode="json", exclude={"perplexity", "speed", "tasks"})
    return Fingerprint(
        {
            "base": job.base_fingerprint,
            "evaluation": digest(json.dumps([data, settings])),
            RELEASE: hubplugin.__version__,
        }
    )


def of_speed(job: Job) -> Fingerprint:
    """Of a variant's speed, beside its weights. Empty where the manifest asks for none."""
    evaluate = job.document.manifest.evaluate
    if evaluate is None or evaluate.speed is None:
        return Fingerprint()
    asked = evaluate.speed
    settings = digest(asked.model_dump_json(exclude=None if asked.kv_cache else {"kv_cache"}))
    digests = {"base": job.base_fingerprint, "speed": settings, RELEASE: hubplugin.__version__}
    if asked.kv_cache:  # which are held against each other on the main text
        digests["text"] = job.source_digest(evaluate.sources[0])
    return Fingerprint(digests)


def of_tasks(job: Job) -> Fingerprint:
    """Of a variant's answers to tasks, beside its weights. Empty where the manifest asks for none."""
    evaluate = job.document.manifest.evaluate
    if evaluate is None or evaluate.tasks is None:
        return Fingerprint()
    files = [own.sha256 for own in job.own_tasks.values()]
    settings = digest(json.dumps([evaluate.tasks.model_dump(mode="json"), files]))
    return Fingerprint({"base": job.base_fingerprint, "tasks": settings, RELEASE: hubplugin.__version__})


def of_blocks(job: Job, variant: VariantPlan, steps: Sequence[Step] | None = None) -> Fingerprint:
    """Of blocks in the making: steps as measurements settled them, and the token sequences themselves.

    `steps` are those of the variant's first pass, where its blocks are meant.
    """
    if steps is None:
        steps = (*variant.adapter.parent.steps, *variant.steps) if variant.adapter else variant.steps
    return Fingerprint(
        {
            "base": job.base_fingerprint,
            "steps": _steps(steps),
            "calibration tokens": job.calibration.description.sha256,
            RELEASE: hubplugin.__version__,
            **_named(job, variant.steps),
        }
    )


def of_measurement(job: Job, searched: object) -> Fingerprint:
    """Of what a search measures on the base before it chooses; `searched` is all of the step it depends on, as JSON."""
    return Fingerprint(
        {
            "base": job.base_fingerprint,
            "calibration tokens": job.calibration.description.sha256,
            "search": digest(json.dumps(searched)),
            RELEASE: hubplugin.__version__,
        }
    )


def _named(job: Job, steps: Sequence[Step]) -> dict[str, str]:
    """Of the models that a distill step names; of one behind an endpoint, its name among the settings says it all."""
    step = distillation_of(steps)
    named = {"student": step.student, "teacher": step.teacher} if step else {}
    return {role: job.named_fingerprint(model) for role, model in named.items() if model}


def _steps(steps: Sequence[Step]) -> str:
    return digest(json.dumps([step.model_dump(mode="json") for step in steps]))
