"""What makes the weights of a variant: passes over the blocks, recovery or distillation before them or between them,
tuning after them.

Each leaves a folder under the variant's own, so that a killed run goes on. Knows the order of passes; no mathematics.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hubplugin import distilling, memory, provenance, report
from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.adapters import peft_folder
from hubplugin.compress import adapter_pass, stages
from hubplugin.compress.blocks import block_record
from hubplugin.compress.stages import Target
from hubplugin.job import RECOVERY, Job
from hubplugin.manifest.methods import adapting_of, closed_form_of, recovery_of, tuning_of
from hubplugin.manifest.steps.adapter import Lora
from hubplugin.manifest.steps.training.base import Distilling, Training
from hubplugin.manifest.steps.training.distill import Distill
from hubplugin.plan.variant_plan import AdapterPlan, VariantPlan
from hubplugin.recovery import adapter_training, recover
from hubplugin.report_assembly import Weights
from hubplugin.variant_folder import ADAPTED, PRUNED, QUANTIZED, RECOVERED, TUNED

STAGE = "compress and export"  # all of them but what is named otherwise, in a report
Trained = report.Recovery | report.Distillation
# what the first of several passes leaves: its results, the folder of the model as it is so far, and how it was trained
Begun = tuple[stages.PassResult, Path, Trained | None]


def begin(job: Job, variant: VariantPlan, out: Path) -> Begun:
    """The first of several passes over the blocks, and recovery or distillation where the steps ask for it.

    A student that no pass makes is trained alone.
    """
    start, step = job.start(variant.steps).path, recovery_of(variant.steps)
    if variant.trains_first:
        first, student = stages.PassResult([], {}, memory.peak()), start
    else:
        first, student = _run(job, start, first_pass(job, variant, out)), out / PRUNED
    if step is None:
        return first, student, None
    if isinstance(step, Distill):
        return first, out / RECOVERED, distilling.run(job, variant, step, student, out)
    return first, out / RECOVERED, _train(job, variant, step, student, out / RECOVERED)


def compress(job: Job, variant: VariantPlan, out: Path, begun: Begun | None) -> Weights:
    """Weights, config.json and tokenizer in `out`: what passes over the blocks make, and tuning makes of that.

    Of an adapter, what PEFT saves.
    """
    if variant.adapter:
        return _adapt(job, variant, variant.adapter, out)
    step = tuning_of(variant.steps)
    weights, dense = _passes(job, variant, out, begun)
    if step is None:
        return weights
    tuning = _train(job, variant, step, out / QUANTIZED, out / TUNED, dense)
    model_folder.copy(model_folder.listing(out / TUNED), out / TUNED, out)
    return replace(weights, samples=stages.stored_samples(out, variant), peak=memory.peak(), tuning=tuning)


def first_pass(job: Job, variant: VariantPlan, out: Path) -> Target:
    """The first pass over the blocks, or the only one, for a variant whose folder in the making is `out`."""
    if not variant.passes:
        return Target(variant, blocks_folder(variant, out), provenance.of_blocks(job, variant))
    first = variant.passes[0]
    return Target(first, out / PRUNED, provenance.of_blocks(job, variant, first.steps))


def _run(job: Job, base: Path, target: Target) -> stages.PassResult:
    return stages.run_pass(base, target.variant, job.calibration.ids, target.out, target.fingerprint)


def blocks_folder(variant: VariantPlan, out: Path) -> Path:
    """Where the last pass over the blocks writes to: what is tuned has a folder of its own before that."""
    return out / QUANTIZED if tuning_of(variant.steps) else out


def _adapt(job: Job, variant: VariantPlan, plan: AdapterPlan, out: Path) -> Weights:
    """An adapter in `out`, in closed form or trained, for the variant whose folder stands beside it."""
    step, folders = adapting_of(variant.steps), (job.snapshot.path, out.parent / plan.parent.name)
    corrected = None
    if closed_form_of(variant.steps):
        corrected = adapter_pass.run(folders, variant, job.calibration.ids, out, provenance.of_blocks(job, variant))
    if isinstance(step, Lora):
        text, described = _text(job, step)
        start = corrected[1] if corrected else None
        tuning = adapter_training.run(folders, plan, text, step, out / ADAPTED, start).model_copy(update=described)
        model_folder.copy((peft_folder.CONFIG, peft_folder.WEIGHTS), out / ADAPTED, out)
        adapter = peft_folder.Adapter(out)
        products = {linear.name: adapter.product(linear.name) for linear in plan.parent.linears}
        samples = {name: block_record.sample(made) for name, made in products.items() if made is not None}
        return Weights([], samples, memory.peak(), tuning=tuning)
    assert corrected is not None
    result, tensors = corrected
    linears = [linear.name for linear in plan.parent.linears]
    peft_folder.write(out, tensors, peft_folder.config(plan.parent.name, None, plan.rank, plan.rank, linears))
    return Weights(result.results, result.samples, result.peak)


def _passes(job: Job, variant: VariantPlan, work: Path, begun: Begun | None) -> tuple[Weights, Path]:
    """Weights, config.json and tokenizer in `blocks_folder`, by one pass over the blocks, or a pass, recovery, and a
    pass.

    Also the folder that the last pass read. Those of earlier passes are in `work`.
    """
    base, out = job.snapshot.path, blocks_folder(variant, work)
    if not variant.passes and not variant.trains_first:
        result = _run(job, base, first_pass(job, variant, work))
        return Weights(result.results, result.samples, result.peak), base
    first, source, trained = begun or begin(job, variant, work)
    distillation = trained if isinstance(trained, report.Distillation) else None
    recovery = trained if isinstance(trained, report.Recovery) else None
    if later := variant.passes[0 if variant.trains_first else 1 :]:
        second = _run(job, source, Target(later[0], out, provenance.of_blocks(job, variant)))
        results, peak = [*first.results, *second.results], max(first.peak, second.peak)
        return Weights(results, second.samples, peak, recovery, distillation=distillation), source
    model_folder.copy(model_folder.listing(source), source, out)  # folders of an interrupted run are not listed
    samples = stages.stored_samples(out, variant)
    return Weights(first.results, samples, memory.peak(), recovery, distillation=distillation), source


def _train(
    job: Job, variant: VariantPlan, step: Training, student: Path, out: Path, dense: Path | None = None
) -> report.Recovery:
    """Train a folder towards the base, on text of its own where the step names some."""
    base, ends = job.snapshot.path, stages.stands_for(variant, job.plan.config["num_hidden_layers"])
    text, described = _text(job, step)
    return recover.run(student, base, out, text, step, ends, dense).model_copy(update=described)


def _text(job: Job, step: Distilling) -> tuple[Tensor, dict[str, Any]]:
    """Token ids to train on, and what the record says of them where they are the step's own."""
    if step.data is None:
        return job.calibration.ids, {}
    batch = job.tokens(RECOVERY, step.data)
    return batch.ids, {"data": batch.description}
