"""Training of a student towards its base: two folders in; the student's folder with better weights out.

A pruned student's weights are trained, or what stands beside the codes of a quantized one. Every stage is kept where
held-out sequences say that it helped, measured on weights as they are stored. A killed run, started again, goes on
where it was and ends in the same bytes. Knows folders and stages. Knows no training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

import hubplugin
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.resume import Fingerprint, TrainingCheckpoints
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.compress.calibration.calibration_data import sha256_of_ids
from hubplugin.disk import digest
from hubplugin.limits import BLOCK_TOKENS, STEP_TOKENS, TUNE_STEP_TOKENS
from hubplugin.manifest.steps.training.base import Training
from hubplugin.manifest.steps.training.recover import Recover
from hubplugin.manifest.steps.training.tune import Tune
from hubplugin.model.architectures import configs
from hubplugin.model.block_runner import Model
from hubplugin.progress import progress
from hubplugin.recovery import block_training, distillation, student_folder
from hubplugin.recovery.grids import grid_weights
from hubplugin.recovery.grids.grid_weights import GridWeights
from hubplugin.recovery.optimizers import Pace
from hubplugin.recovery.splitting import Split, split
from hubplugin.recovery.student_folder import digest_of
from hubplugin.recovery.trainable import Adapters, AllWeights, Trainable
from hubplugin.recovery.training_setup import TrainingSetup, device_for
from hubplugin.report import RecoveredBlock, Recovery

BLOCKS_RATIO = 0.5  # of the time limit, after which blocks are left as they are
# peak learning rates: of matrices by Muon, block by block and together; of adapters by AdamW; of what stands beside
# codes by AdamW, as a ratio of its size, block by block and together
BLOCK_RATE, RATE, LORA_RATE, TUNE_BLOCK_RATE, TUNE_RATE = 2e-3, 1e-4, 1e-3, 4e-3, 3e-4


def run(
    student: Path,
    base: Path,
    out: Path,
    tokens: Tensor,
    step: Training,
    teacher_blocks: Sequence[int] | None = None,
    dense: Path | None = None,
) -> Recovery:
    """Train a student towards its base and write it to `out`: names, shapes and dtypes stay, weights differ.

    `tokens` are ids [sequences, tokens]; one sequence in eight is held out. `teacher_blocks` names for each of the
    student's blocks the base's block whose output it should match; None: the same one. `dense` is the folder that a
    quantized student's codes were made from, between whose weights a tune step with `rounding` rounds again. A folder
    that is finished is kept as it is. What a killed run needs stands under resume.TRAINING in `out`, and is the
    caller's to remove. Raises CompressError where there are too few sequences, and where `out` was begun with
    something else; ValueError for rounding without `dense`.
    """
    out.mkdir(parents=True, exist_ok=True)
    teachers = tuple(range(_depth(student))) if teacher_blocks is None else tuple(teacher_blocks)
    rounded = dense if isinstance(step, Tune) and step.rounding else None
    if isinstance(step, Tune) and step.rounding and dense is None:
        raise ValueError("rounding needs the folder that the codes were made from")
    checkpoints = TrainingCheckpoints(out, _fingerprint((student, base, rounded), tokens, step, teachers))

    def made() -> Recovery:
        setup = TrainingSetup(student, base, split(tokens), Reader(student).headers, device_for(student, base))
        record, weights = _train(setup, Task(setup, step, rounded), teachers, checkpoints)
        student_folder.write(setup.student, setup.headers, weights, out)
        return record

    return checkpoints.load_or_make(Recovery, made)


@dataclass(frozen=True)
class Task:
    """What a step trains of a student, and how fast."""

    setup: TrainingSetup
    step: Training
    dense: Path | None  # where the weights before quantization are, if codes are rounded again

    def of_block(self, student: Model, index: int) -> Trainable:
        """What is trained of a block that is loaded."""
        module, prefix = student.loaded(index), student.family.block.format(i=index)
        if isinstance(self.step, Tune):
            return GridWeights(module, self.setup.student, prefix, DenseView(self.dense) if self.dense else None)
        return AllWeights(module, [name for name, weight in module.named_parameters() if weight.dim() == 2])

    def of_model(self, student: Model, replaced: Mapping[str, Tensor]) -> Trainable:
        """What is trained of a whole model, some of whose stored tensors are replaced."""
        model, family = student.load_all(), student.family
        if isinstance(self.step, Tune):
            return GridWeights(model, self.setup.student, replaced=replaced)
        if isinstance(self.step, Recover) and self.step.lora:
            return Adapters(model, self.step.lora, family)
        suffixes = tuple(f"{name}.weight" for name in family.linears())
        return AllWeights(model, [name for name, _ in model.named_parameters() if name.endswith(suffixes)])

    @property
    def step_tokens(self) -> int:
        """Tokens that one step learns from."""
        return TUNE_STEP_TOKENS if isinstance(self.step, Tune) else STEP_TOKENS

    @property
    def block_rate(self) -> float:
        """The peak learning rate of blocks."""
        return TUNE_BLOCK_RATE if isinstance(self.step, Tune) else BLOCK_RATE

    @property
    def rate(self) -> float:
        """The peak learning rate of distillation."""
        lora = isinstance(self.step, Recover) and self.step.lora
        return self.step.learning_rate or (TUNE_RATE if isinstance(self.step, Tune) else LORA_RATE if lora else RATE)


@dataclass(frozen=True)
class _Weights:
    """Weights that differ from the student's, by full name and as they will be stored."""

    replaced: Mapping[str, Tensor]
    held_out_kl: float  # nats per token

    def or_better(self, other: "_Weights") -> "_Weights":
        """Whichever has the lower held-out KL."""
        return other if other.held_out_kl < self.held_out_kl else self


@dataclass(frozen=True)
class _TrainedBlocks:
    """What the first stage made."""

    weights: _Weights
    records: tuple[RecoveredBlock, ...]
    seconds: float


def _train(
    setup: TrainingSetup, task: Task, teacher_blocks: tuple[int, ...], checkpoints: TrainingCheckpoints
) -> tuple[Recovery, Mapping[str, Tensor]]:
    """Both stages; the record, and the tensors that are better than the student's, as they will be stored."""
    step = task.step
    given = best = _Weights({}, setup.held_out_kl({}))
    progress(f"{step.method} | held-out KL {given.held_out_kl:.5f} as it came")
    seconds: dict[str, float] = {}
    blocks = distilled = None
    if step.blocks:
        blocks = _train_blocks(setup, task, teacher_blocks, checkpoints, BLOCKS_RATIO * step.limit)
        best, seconds["blocks"] = best.or_better(blocks.weights), blocks.seconds
    if step.distill:
        distilled, weights = _distill(setup, task, best, checkpoints, step.limit - seconds.get("blocks", 0.0))
        best, seconds["distillation"] = best.or_better(weights), distilled.seconds
    trained_on = set(range(_block_sequences(setup.tokens) if step.blocks else 0))
    trained_on |= distilled.seen if distilled else set()
    record = Recovery(
        trained=describe(step),
        tokens=len(trained_on) * setup.tokens.train.shape[1],
        held_out_tokens=setup.tokens.held_out.numel(),
        steps=distilled.steps if distilled else 0,
        best_step=distilled.best_step if distilled else 0,
        stopped=distilled.stopped if distilled else "",
        seconds={name: round(value, 2) for name, value in seconds.items()},
        blocks=blocks.records if blocks else (),
        kl_before=given.held_out_kl,
        kl_blocks=blocks.weights.held_out_kl if blocks else None,
        kl_after=best.held_out_kl,
        curve=distilled.curve if distilled else (),
        moved_codes=grid_weights.moved_codes(setup.student, best.replaced) if task.dense else None,
    )
    return record, best.replaced


def _train_blocks(
    setup: TrainingSetup, task: Task, teacher_blocks: tuple[int, ...], checkpoints: TrainingCheckpoints, limit: float
) -> _TrainedBlocks:
    """The first stage, on as many of the sequences as may be held in memory."""
    (train, held_out), student = setup.tokens, setup.model(setup.student)
    training = block_training.BlockTraining(
        student=student,
        base=setup.model(setup.base),
        trainable=partial(task.of_block, student),
        tokens=Split(train[: _block_sequences(setup.tokens)], held_out),
        epochs=task.step.blocks,
        pace=Pace(task.block_rate, task.step_tokens, limit),
        teacher_blocks=teacher_blocks,
        dtypes=setup.dtypes,
        checkpoints=checkpoints,
        label=task.step.method,
    )
    records, trained = [], dict[str, Tensor]()
    for record, tensors in training.run():
        records.append(record)
        trained |= tensors
    weights = _Weights(trained, setup.held_out_kl(trained))
    progress(f"{task.step.method} | held-out KL {weights.held_out_kl:.5f} after its blocks")
    names = (block_training.checkpoint_name(index) for index in range(len(teacher_blocks)))
    return _TrainedBlocks(weights, tuple(records), sum(checkpoints.notes(name)["seconds"] for name in names))


def _distill(
    setup: TrainingSetup, task: Task, start: _Weights, checkpoints: TrainingCheckpoints, limit: float
) -> tuple[distillation.Distilled, _Weights]:
    """The second stage, from the best weights of the first. `limit` in seconds."""
    student = task.of_model(setup.model(setup.student, start.replaced), start.replaced)
    base, step = setup.model(setup.base).load_all(), task.step
    pace = Pace(task.rate, task.step_tokens, limit)
    lesson = distillation.Predictions(base, setup.tokens, step.top_k)
    training = distillation.Distillation(student, lesson, step, start.held_out_kl, pace)
    distilled = training.run(checkpoints)
    trained = {**start.replaced, **setup.as_stored(distilled.weights)}
    weights = _Weights(trained, setup.held_out_kl(trained))
    progress(f"{step.method} | held-out KL {weights.held_out_kl:.5f} after distillation, as stored")
    return distilled, weights


def _block_sequences(tokens: Split) -> int:
    """How many sequences blocks are trained on: BLOCK_TOKENS at most."""
    return min(len(tokens.train), max(1, BLOCK_TOKENS // tokens.train.shape[1]))


def _fingerprint(
    folders: tuple[Path, Path, Path | None], tokens: Tensor, step: Training, teacher_blocks: tuple[int, ...]
) -> Fingerprint:
    """What a training is made from; another of any of these ends in other weights. `folders`: student, base, dense."""
    student, base, dense = folders
    digests = {
        "base": digest_of(base),
        "student": digest_of(student),
        **({"dense": digest_of(dense)} if dense else {}),
        "tokens": sha256_of_ids(tokens),
        "steps": digest(json.dumps([step.model_dump(mode="json", exclude={"data"}), teacher_blocks])),
        "release of hubplugin": hubplugin.__version__,
    }
    return Fingerprint(digests)


def _depth(folder: Path) -> int:
    return int(configs.read_config(folder, str(folder))["num_hidden_layers"])


def describe(step: Training) -> str:
    """What is trained, in words."""
    if isinstance(step, Tune):
        codes = " and the rounding of codes" if step.rounding else ""
        stages = [f"of the blocks one by one{codes}"] * bool(step.blocks) + ["of the whole model"] * bool(step.distill)
        return f"scales, norms and biases {', then '.join(stages)}"
    lora = isinstance(step, Recover) and step.lora
    all_at_once = f"LoRA adapters of rank {lora} at the blocks' linears, merged" if lora else "all weights"
    stages = ["the blocks one by one"] * bool(step.blocks) + [all_at_once] * bool(step.distill)
    return ", then ".join(stages)
