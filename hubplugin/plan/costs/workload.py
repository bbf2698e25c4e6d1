"""What making a variant has to do, for the estimates of memory and time. Knows steps and sizes; refuses nothing."""

from collections.abc import Sequence
from dataclasses import replace

from hubplugin import limits
from hubplugin.manifest.methods import (
    closed_form_of,
    factorization_of,
    grid_of,
    mask_of,
    pruning_of,
    quantization_of,
    row_of,
    trainings_of,
)
from hubplugin.manifest.schema import Document, Step
from hubplugin.manifest.source import Source
from hubplugin.manifest.steps.adapter import Lora
from hubplugin.manifest.steps.training.base import Distilling, Training
from hubplugin.manifest.steps.training.distill import Distill
from hubplugin.manifest.steps.training.tune import Tune
from hubplugin.plan import sizes
from hubplugin.plan.base import Base
from hubplugin.plan.costs import estimates
from serve import cpu_features


def of(document: Document, base: Base, steps: Sequence[Step], teacher: Base | None = None) -> estimates.Work:
    """The work of these steps on a base, without what is measured before they are decided.

    `teacher` is that of a distill step, where it is another model than the base.
    """
    source, evaluate = document.manifest.calibrate, document.manifest.evaluate
    quantizing, grid, prune, mask = quantization_of(steps), grid_of(steps), pruning_of(steps), mask_of(steps)
    factoring = factorization_of(steps) or closed_form_of(steps)
    stored = base.tensors[f"{sizes.names(base.family, base.dims)[0]}.weight"].dtype
    number = 2 if stored == "BF16" and cpu_features.has(cpu_features.FAST_BFLOAT16) else estimates.FP32
    return estimates.Work(
        samples=source.samples,
        tokens=source.sequence_length,
        quantizes=row_of(quantizing).cost if quantizing else None,
        prunes=row_of(prune).cost if prune else None,
        corrected=corrected_tokens(steps, source.samples * source.sequence_length),
        fisher=min(grid.fisher_tokens, source.samples * source.sequence_length) if grid else 0,
        skips=prune is not None and prune.measures,
        descends=grid.passes if grid else 0,
        masks=row_of(mask).cost if mask else None,
        factors=row_of(factoring).cost if factoring else None,
        head=grid is not None and grid.lm_head,
        number=number,
        device_number=2 if stored == "BF16" else estimates.FP32,
        cpu=estimates.this_cpu(number),
        trainings=tuple(_training(step, source, base, teacher) for step in trainings_of(steps)),
        # whose hidden states the base's evaluation keeps for its variants
        evaluated=sum(one.samples * one.sequence_length for one in evaluate.sources) if evaluate else 0,
    )


def _training(step: Distilling, calibration: Source, base: Base, teacher: Base | None) -> estimates.Training:
    """What a step that trains a model of the base's size must hold and do."""
    source = step.data or calibration
    tokens = source.samples * source.sequence_length
    held = min(tokens, limits.BLOCK_TOKENS)
    copies = estimates.TUNED_COPIES if isinstance(step, Tune) else estimates.STUDENT_COPIES
    copies = estimates.ADAPTED_COPIES if isinstance(step, Lora) else copies
    blocks = step.blocks if isinstance(step, Training) else 0
    beside, answers = (teacher or base).parameters, step.answers if isinstance(step, Distill) else None
    together = limits.TUNE_STEP_TOKENS if isinstance(step, (Tune, Lora)) else limits.STEP_TOKENS
    distilled = int(step.distill * tokens)
    work = estimates.Training(
        base.parameters, copies, held, blocks * held, distilled, together, beside, limit=step.limit
    )
    if answers is None:
        return work
    asked = 0 if answers.endpoint else source.samples * min(answers.max_tokens, source.sequence_length)
    return replace(work, teacher=0 if answers.endpoint else beside, answers=True, asked_tokens=asked)


def corrected_tokens(steps: Sequence[Step], tokens: int) -> int:
    """How many of so many calibration tokens pass through the base too, because linears are fitted to what it makes."""
    fitted, prune = (quantization_of(steps), factorization_of(steps), closed_form_of(steps)), pruning_of(steps)
    aims = max(step.qep_tokens if step and step.qep else 0 for step in fitted)
    if prune and (prune.refit or aims):
        return tokens
    return min(tokens, aims)
