"""Training of a LoRA adapter beside a finished variant, towards the base: two folders in, an adapter's tensors out.

It begins as the variant itself (B is 0), or at another adapter. A killed run, started again, goes on where it was and
ends in the same bytes. Knows folders and one step. The training itself is distillation.py's.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

import hubplugin
from hubplugin.checkpoint.adapters import composed, peft_folder
from hubplugin.checkpoint.resume import Fingerprint, TrainingCheckpoints
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES, Reader
from hubplugin.compress.calibration.calibration_data import sha256_of_ids
from hubplugin.disk import digest
from hubplugin.limits import TUNE_STEP_TOKENS
from hubplugin.manifest.steps.adapter import Lora
from hubplugin.plan.variant_plan import AdapterPlan
from hubplugin.progress import progress
from hubplugin.recovery.distillation import Distillation, Predictions
from hubplugin.recovery.optimizers import Pace
from hubplugin.recovery.splitting import split
from hubplugin.recovery.student_folder import digest_of
from hubplugin.recovery.trainable import ALPHA, OwnAdapters
from hubplugin.recovery.training_setup import TrainingSetup, device_for
from hubplugin.report import Recovery

RATE = 2e-4  # beside codes, which lack little; at five times as much held-out KL rises (docs/log.md, 2026-12-01)


def run(
    folders: tuple[Path, Path],
    plan: AdapterPlan,
    tokens: Tensor,
    step: Lora,
    out: Path,
    start: Mapping[str, Tensor] | None = None,
) -> Recovery:
    """Train an adapter and write it to `out` as PEFT does.

    `folders` are those of the base and of the variant that it is for; `tokens` are ids [sequences, tokens], of which
    one sequence in eight is held out. `start` are factors A and B by PEFT's names, whose product training begins at;
    None: nothing. What a killed run needs stands under resume.TRAINING in `out`. Raises
    CompressError where there are too few sequences, and where `out` was begun with something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoints = TrainingCheckpoints(out, _fingerprint(folders, tokens, step, start or {}))

    def made() -> Recovery:
        base, parent = folders
        setup = TrainingSetup(parent, base, split(tokens), Reader(parent).headers, device_for(parent, base))
        return _train(setup, plan, step, checkpoints, out, start)

    return checkpoints.load_or_make(Recovery, made)


def _train(
    setup: TrainingSetup,
    plan: AdapterPlan,
    step: Lora,
    checkpoints: TrainingCheckpoints,
    out: Path,
    start: Mapping[str, Tensor] | None,
) -> Recovery:
    """The record of an adapter that stands in `out` then."""
    linears = [linear.name for linear in plan.parent.linears]
    before = begun = setup.held_out_kl({})
    progress(f"{step.method} | held-out KL {before:.5f} without the adapter")
    model = setup.model(setup.student)
    student = OwnAdapters(model.load_all(), step.rank, model.family)
    if start:
        student.begin_at(start)
        peft_folder.write(out, start, peft_folder.config(plan.parent.name, None, step.rank, step.rank, linears))
        begun = _held_out_kl(setup, out)
        progress(f"{step.method} | held-out KL {begun:.5f} in closed form, where training begins")
    pace = Pace(step.learning_rate or RATE, TUNE_STEP_TOKENS, step.limit)
    lesson = Predictions(setup.model(setup.base).load_all(), setup.tokens, step.top_k)
    distilled = Distillation(student, lesson, step, begun, pace).run(checkpoints)
    tensors = {
        name: weight.to("cpu", TORCH_DTYPES[plan.tensors[name].dtype]) for name, weight in distilled.weights.items()
    }
    peft_folder.write(out, tensors, peft_folder.config(plan.parent.name, None, step.rank, ALPHA * step.rank, linears))
    after = _held_out_kl(setup, out)
    progress(f"{step.method} | held-out KL {after:.5f} after distillation, as stored")
    return Recovery(
        trained=f"a LoRA adapter of rank {step.rank} at the blocks' linears, beside the weights of {plan.parent.name}"
        + ", begun in closed form (EoRA)" * bool(start),
        tokens=len(distilled.seen) * setup.tokens.train.shape[1],
        held_out_tokens=setup.tokens.held_out.numel(),
        steps=distilled.steps,
        best_step=distilled.best_step,
        stopped=distilled.stopped,
        seconds={"distillation": round(distilled.seconds, 2)},
        blocks=(),
        kl_before=before,
        kl_blocks=None,
        kl_after=after,
    )


def _held_out_kl(setup: TrainingSetup, adapter: Path) -> float:
    """Of the variant with the adapter, as it is stored."""
    with composed.composed(setup.student, adapter) as both:
        return setup.kl_of(setup.model(both))


def _fingerprint(folders: tuple[Path, Path], tokens: Tensor, step: Lora, start: Mapping[str, Tensor]) -> Fingerprint:
    """What the adapter is made from; another of any of these ends in another adapter."""
    base, parent = folders
    return Fingerprint(
        {
            "base": digest_of(base),
            "variant that it is for": digest_of(parent),
            "tokens": sha256_of_ids(tokens),
            "start": digest("".join(f"{name} {_digest(tensor)}\n" for name, tensor in sorted(start.items()))),
            "steps": digest(json.dumps(step.model_dump(mode="json", exclude={"data"}))),
            "release of hubplugin": hubplugin.__version__,
        }
    )


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
