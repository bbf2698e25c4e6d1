"""A student's folder trained on a teacher's answers: rows in; the folder with better weights out.

Kept is what held-out answers say is better, measured on weights as they are stored. A killed run, started again, goes
on where it was and ends in the same bytes. Knows folders and the one training loop. Knows no teacher.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.nn import functional

import hubplugin
from hubplugin.checkpoint.resume import Fingerprint, TrainingCheckpoints
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.disk import digest
from hubplugin.manifest.steps.training.distill import Distill
from hubplugin.model.kl_divergence import hidden_pieces
from hubplugin.progress import progress
from hubplugin.recovery import distillation, splitting, student_folder
from hubplugin.recovery.answers.cross_entropy import CrossEntropy
from hubplugin.recovery.answers.rows import AnswerRows
from hubplugin.recovery.optimizers import Pace
from hubplugin.recovery.recover import Task, describe
from hubplugin.recovery.splitting import Split
from hubplugin.recovery.training_setup import TrainingSetup, device_for
from hubplugin.report import Distillation


def run(student: Path, out: Path, rows: AnswerRows, step: Distill) -> Distillation:
    """Train a student on answers and write it to `out`: names, shapes and dtypes stay, weights differ.

    Every eighth answer is held out. A folder that is finished is kept as it is; what a killed run needs is as in
    `recover.run`. Raises CompressError where `out` was begun with something else. The record names no teacher.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoints = TrainingCheckpoints(out, _fingerprint(student, rows, step))

    def made() -> Distillation:
        held = splitting.held_out(rows.lengths)
        tokens = Split(rows.ids[~held], rows.ids[held])
        setup = TrainingSetup(student, student, tokens, Reader(student).headers, device_for(student, student))
        record, weights = _train(setup, rows.pick(~held), rows.pick(held), step, checkpoints)
        student_folder.write(student, setup.headers, weights, out)
        return record

    return checkpoints.load_or_make(Distillation, made)


def _train(
    setup: TrainingSetup, train: AnswerRows, held_out: AnswerRows, step: Distill, checkpoints: TrainingCheckpoints
) -> tuple[Distillation, Mapping[str, Tensor]]:
    """The record, and the tensors that are better than the student's, as they will be stored."""
    before = stored_loss(setup, held_out, {})
    progress(f"{step.method} | held-out cross-entropy {before:.5f} as it came")
    task, model = Task(setup, step, None), setup.model(setup.student)
    lesson = CrossEntropy(train, held_out, model.vocabulary, setup.device)
    pace = Pace(task.rate, task.step_tokens, step.limit)
    done = distillation.Distillation(task.of_model(model, {}), lesson, step, before, pace).run(checkpoints)
    weights = setup.as_stored(done.weights)
    after = stored_loss(setup, held_out, weights)
    progress(f"{step.method} | held-out cross-entropy {after:.5f} after distillation, as stored")
    record = Distillation(
        teacher=None,
        student=None,
        measured="cross-entropy",
        trained=describe(step),
        tokens=int(train.lengths[sorted(done.seen)].sum()),
        held_out_tokens=int(held_out.lengths.sum()),
        steps=done.steps,
        best_step=done.best_step,
        stopped=done.stopped,
        seconds={"distillation": round(done.seconds, 2)},
        before=before,
        after=min(before, after),
        curve=done.curve,
    )
    return record, weights if after < before else {}


def stored_loss(setup: TrainingSetup, rows: AnswerRows, replaced: Mapping[str, Tensor]) -> float:
    """Cross-entropy in nats per token of answers, of the student with some weights replaced, block by block."""
    model = setup.model(setup.student, replaced)
    predicts = rows.answer[:, 1:]
    hidden = model.hidden_states(rows.ids)[:, :-1][predicts.to(setup.device)]
    wanted = rows.ids[:, 1:][predicts].long().to(setup.device)
    pieces, total, place = hidden_pieces(model, hidden), 0.0, 0
    for piece in pieces:
        following = wanted[place : place + len(piece)]
        total += float(functional.cross_entropy(model.logits(piece), following, reduction="sum"))
        place += len(piece)
    return total / len(wanted)


def _fingerprint(student: Path, rows: AnswerRows, step: Distill) -> Fingerprint:
    """What a training is made from; another of any of these ends in other weights."""
    settings = step.model_dump(mode="json", exclude={"data", "answers", "student", "teacher"})
    return Fingerprint(
        {
            "student": student_folder.digest_of(student),
            "answers": rows.sha256,
            "steps": digest(json.dumps(settings)),
            "release of hubplugin": hubplugin.__version__,
        }
    )
