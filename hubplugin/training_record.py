"""The parts of a report about training: blocks, recovery, tuning, and distillation with its teacher and its answers."""

from typing import Literal

from hubplugin.origin_record import Base, Tokens
from hubplugin.record import Record


class RecoveredBlock(Record):
    """One block trained towards the base's hidden states, measured on held-out sequences as it is stored."""

    index: int
    loss_before: float  # |student - base|^2 / |base|^2 of the block's outputs, mean over tokens
    loss_after: float


class Recovery(Record):
    """A pruned or quantized model trained towards its base. KL is KL(base || student) in nats per held-out token."""

    trained: str  # what was trained, in words
    tokens: int  # different ones that were trained on
    held_out_tokens: int  # never trained on
    steps: int  # of distillation; the kept weights are those after `best_step`
    best_step: int
    stopped: str  # why distillation ended, in words; empty where there was none
    seconds: dict[str, float]  # by stage
    blocks: tuple[RecoveredBlock, ...]
    kl_before: float  # as pruned, or as quantized
    kl_blocks: float | None  # after the blocks, as stored; None where none was trained
    kl_after: float  # of what was written
    data: Tokens | None = None  # what it was trained on, where that is not the calibration
    moved_codes: float | None = None  # ratio of codes that were rounded otherwise; None: codes were fixed
    curve: tuple[tuple[int, float], ...] = ()  # of distillation: held-out KL in float32 after so many steps


class Answers(Record):
    """A teacher's answers to prompts, as text."""

    by: str  # who gave them, in words: a model in this process, or one of an endpoint
    prompts: str  # where these are from, in words
    asked: int
    ended: int  # of these: ended by the teacher, not by `max_tokens`
    left_out: int  # answers without a word, and those that do not fit into `sequence_length`
    temperature: float
    max_tokens: int
    seed: int
    sha256: str  # of prompts and answers as token ids, in order


class Distillation(Record):
    """A student trained towards a teacher.

    `before` and `after` are KL(teacher || student), or the cross-entropy of the teacher's answers, in nats per held-out
    token, of weights as they are stored.
    """

    teacher: Base | None  # None: a model behind an endpoint, of which only its answers are known
    student: Base | None  # None: the base, or what was pruned of it
    measured: Literal["KL", "cross-entropy"]
    trained: str  # what was trained, in words
    tokens: int  # different ones that were learnt from: of texts, or of answers
    held_out_tokens: int  # never trained on
    steps: int  # the kept weights are those after `best_step`
    best_step: int
    stopped: str  # why it ended, in words
    seconds: dict[str, float]  # by stage
    before: float
    after: float  # of what was written
    curve: tuple[tuple[int, float], ...]  # the same in float32, after so many steps
    blocks: tuple[RecoveredBlock, ...] = ()
    after_blocks: float | None = None  # None where no block was trained
    data: Tokens | None = None  # what it was trained on, where that is not the calibration
    answers: Answers | None = None
