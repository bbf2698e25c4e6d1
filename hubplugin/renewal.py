"""Report, gate and card of a variant whose weights stay, made anew from what its manifest says now.

Measures only what the manifest asks for otherwise than before. Compresses nothing.
"""

from collections.abc import Sequence
from pathlib import Path

from hubplugin import provenance, report_assembly, variant_folder, writing
from hubplugin.checkpoint.resume import Fingerprint
from hubplugin.disk import write_atomically
from hubplugin.errors import GateError
from hubplugin.evaluation import gate, generation
from hubplugin.job import Job
from hubplugin.plan.draft import DraftPlan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress
from hubplugin.report import GateLine, Report
from hubplugin.report_assembly import Judged
from hubplugin.variant_folder import MANIFEST


def renew(
    job: Job, variant: VariantPlan, folder: Path, made: Report, generate: generation.Generate, thorough: bool = False
) -> Report:
    """Judge a finished folder by its manifest, and write report, manifest and card where they say something else.

    What passed its gate is not checked again, but for the thresholds; `thorough` checks everything again.
    """
    judged = _judge(job, variant, folder, made, generate, thorough)
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


def _judge(
    job: Job, variant: VariantPlan, folder: Path, made: Report, generate: generation.Generate, thorough: bool
) -> Judged:
    numbers = provenance.of_numbers(job)
    stale = numbers.changed(Fingerprint(made.measured_from))
    evaluation = job.measure(variant, folder) if stale else made.evaluation
    quality = gate.judge(evaluation, job.document.manifest.gate.of(variant.name))
    lines = tuple(quality if line.name == gate.QUALITY else line for line in made.gate)
    if thorough or any(not line.passed for line in lines if line.name != gate.QUALITY):
        prompts = [list(prompt) for prompt in made.prompts]
        candidate = job.candidate(
            variant, folder, samples={}, evaluation=evaluation, generate=generate, prompts=prompts
        )
        lines = gate.check_again(candidate, made.gate)
    if lines != made.gate:
        announce(lines)
    return Judged(evaluation, numbers, lines)


def announce(lines: Sequence[GateLine]) -> None:
    """One line of progress for each line of a gate."""
    for line in lines:
        progress(f"gate {'passed' if line.passed else 'FAILED'} | {line.name}: {line.detail}")
