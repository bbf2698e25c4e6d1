"""What a variant's weights and its numbers are made from: another of any of these makes others.

Decides what a run may keep. An edit of the manifest that changes none of it (a comment, `publish:`, `gate:`, another
variant) makes nothing anew but report and card. Knows digests; computes nothing else and changes nothing.
"""

import json
from pathlib import Path

import hubplugin
from hubplugin.checkpoint.resume import Fingerprint
from hubplugin.disk import digest, sha256
from hubplugin.job import Job
from hubplugin.manifest.base import Settings
from hubplugin.manifest.methods import recovery_of
from hubplugin.manifest.source import Source
from hubplugin.plan.draft import DraftPlan
from hubplugin.plan.variant_plan import VariantPlan

RELEASE = "release of hubplugin"


def of_weights(job: Job, draft: DraftPlan) -> Fingerprint:
    """Of a variant's weights, config.json and tokenizer. Known before any token sequence is made."""
    steps, folder = draft.recipe.steps, job.document.folder
    digests = {
        "base": job.base_fingerprint,
        "steps": digest(json.dumps([_settings(step) for step in steps])),
        "calibration data": _source(job.document.manifest.calibrate, folder),
        RELEASE: hubplugin.__version__,
    }
    if (step := recovery_of(steps)) and step.data:
        digests["recovery data"] = _source(step.data, folder)
    return Fingerprint(digests)


def of_numbers(job: Job) -> Fingerprint:
    """Of what is measured of a variant, beside its weights. Empty where the manifest evaluates nothing."""
    evaluate = job.document.manifest.evaluate
    if evaluate is None:
        return Fingerprint()
    data = _source(evaluate.perplexity, job.document.folder)
    settings = {key: value for key, value in _settings(evaluate).items() if key != "perplexity"}
    return Fingerprint(
        {
            "base": job.base_fingerprint,
            "evaluation": digest(json.dumps([data, settings])),
            RELEASE: hubplugin.__version__,
        }
    )


def of_blocks(job: Job, variant: VariantPlan) -> Fingerprint:
    """Of blocks in the making: steps as measurements settled them, and the token sequences themselves."""
    return Fingerprint(
        {
            "base": job.base_fingerprint,
            "steps": digest(json.dumps([_settings(step) for step in variant.steps])),
            "calibration tokens": job.calibration.description.sha256,
            RELEASE: hubplugin.__version__,
        }
    )


def _settings(settings: Settings) -> dict[str, object]:
    return settings.model_dump(mode="json")


def _source(source: Source, folder: Path) -> str:
    """A digest of a source's settings and, of files, their contents.

    Of a dataset without a `revision:` the rows may have changed on the Hub; what was made from them is kept.
    """
    files = [sha256(folder / name) for name in source.files or () if (folder / name).is_file()]
    return digest(json.dumps([_settings(source), files]))
