"""Distillation: a student trained end to end on the base's predictions, by forward KL.

Weights are in float32, products in bfloat16 where they are fast. What has the lowest held-out loss is kept
(docs/maths.md, Recovery). Predictions are one `Lesson`, answers another (answers/cross_entropy.py). Knows two models,
and what is trained of one by `Trainable`. Knows no folder.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hubplugin.checkpoint.resume import TrainingCheckpoints
from hubplugin.limits import MICRO_TOKENS
from hubplugin.manifest.steps.training.base import Distilling
from hubplugin.model.kl_divergence import divergence
from hubplugin.progress import progress
from hubplugin.recovery.optimizers import Pace, fast_products, schedule
from hubplugin.recovery.output_head import divergence_at_head, forward_kl, hidden_states, loss_of, plain_head
from hubplugin.recovery.splitting import Split
from hubplugin.recovery.trainable import Student, Trainable

LOGITS = 2**23  # positions times vocabulary, of which logits are made at once
EVALUATIONS, PATIENCE = 8, 3  # on held-out sequences, in all; how many may pass without a better one, once the rate
# is on its way down: at its height it hides what was learnt
CHECKPOINT = "distillation"


Predictor = Callable[..., Any]  # a model of transformers', or one with other weights in place of its own


def logits_of(model: Predictor, ids: Tensor) -> Tensor:
    """Logits [..., vocabulary] of token ids [sequences, tokens], in float32."""
    return cast(Tensor, model(input_ids=ids, use_cache=False).logits).float()


def rows_at_once(tokens: Tensor, vocabulary: int, head: nn.Linear | None = None) -> int:
    """How many sequences pass together: those whose logits may exist at once, or more before a head in pieces."""
    return max(1, (MICRO_TOKENS if head else LOGITS // vocabulary) // tokens.shape[1])


@torch.no_grad()
def held_out(student: Predictor, expected: Iterable[Tensor], tokens: Tensor, vocabulary: int) -> float:
    """Mean KL(base || student) in nats per token over the whole vocabulary, in float32, of ids [sequences, tokens].

    `expected` are the base's logits [rows, tokens, vocabulary], of `rows_at_once` sequences each.
    """
    pairs = zip(tokens.split(rows_at_once(tokens, vocabulary)), expected, strict=True)
    total = sum(float(divergence(base, logits_of(student, ids.long().to(base.device))).sum()) for ids, base in pairs)
    return total / tokens.numel()


@dataclass(frozen=True)
class Distilled:
    """What distillation made."""

    weights: dict[str, Tensor]  # by full name as they are stored, not yet rounded: those of the best step
    steps: int
    best_step: int
    stopped: str  # why it ended, in words
    seconds: float
    seen: frozenset[int]  # the sequences that it learnt from
    curve: tuple[tuple[int, float], ...]  # held-out loss in nats per token, after so many steps


class Lesson(Protocol):
    """What a student learns, and how well it is judged to know it."""

    measure: str  # what `held_out` is, in words
    train: Tensor  # token ids [sequences, tokens] to learn from

    def learn(self, student: Student, picked: Sequence[int]) -> float:
        """Gradients of the mean loss per token of some of the sequences; returns that loss."""

    def held_out(self, student: Student) -> float:
        """The mean loss in nats per token of sequences that are never learnt from, in float32."""


class Predictions:
    """The lesson of a base's predictions of every token: all of the vocabulary, or the `top_k` likeliest and a rest."""

    measure = "held-out KL"

    def __init__(self, base: nn.Module, tokens: Split, top_k: int | None) -> None:
        self._base, self._kl = base, forward_kl(top_k)
        self._vocabulary = int(base.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        self._head = plain_head(base)
        self._device = next(base.parameters()).device
        self.train, self._held_out = tokens

    def learn(self, student: Student, picked: Sequence[int]) -> float:
        """As `Lesson`."""
        rows = self.train[list(picked)].long().to(self._device)
        loss, head = 0.0, student.head if self._head else None
        for ids in rows.split(rows_at_once(rows, self._vocabulary, head)):
            with fast_products(self._device.type):
                summed = self._at_head(student, head, ids) if head else self._of_logits(student, ids)
            part = summed / rows.numel()
            part.backward()
            loss += float(part.detach())
        return loss

    def _at_head(self, student: Predictor, head: nn.Linear, ids: Tensor) -> Tensor:
        """The summed loss of token ids [sequences, tokens], whose logits never exist all at once."""
        assert self._head is not None
        with torch.no_grad():
            read = hidden_states(self._base, self._head, ids)
        return divergence_at_head(student, head, ids, (read, self._head.weight), self._kl)

    def _of_logits(self, student: Predictor, ids: Tensor) -> Tensor:
        """The same where logits are more than a head's products."""
        with torch.no_grad():
            known = logits_of(self._base, ids).flatten(0, -2)
        return loss_of(logits_of(student, ids).flatten(0, -2), known, self._kl)

    def held_out(self, student: Predictor) -> float:
        """As `Lesson`."""
        return held_out(student, self._expected(), self._held_out, self._vocabulary)

    def _expected(self) -> Iterator[Tensor]:
        """The base's logits of the held-out sequences; what its head reads is computed once."""
        if self._head:
            yield from (self._head(read).float() for read in self._kept)
        else:
            yield from (logits_of(self._base, ids) for ids in self._held_out_parts())

    @cached_property
    def _kept(self) -> list[Tensor]:
        assert self._head is not None
        return [hidden_states(self._base, self._head, ids) for ids in self._held_out_parts()]

    def _held_out_parts(self) -> Iterator[Tensor]:
        parts = self._held_out.split(rows_at_once(self._held_out, self._vocabulary))
        return (ids.long().to(self._device) for ids in parts)


class Distillation:
    """A student in training. `before` is its held-out loss before."""

    def __init__(self, student: Trainable, lesson: Lesson, step: Distilling, before: float, pace: Pace) -> None:
        self._student, self._lesson, self._step, self._limit = student, lesson, step, pace.limit
        self._count, self._weights, self._predict = len(lesson.train), student.trained, Student(student)
        self._device = next(iter(self._weights.values())).device
        self._rows = max(1, pace.step_tokens // lesson.train.shape[1])
        self._total = max(1, int(step.distill * self._count) // self._rows)
        self._optimizer = student.optimizers(pace.rate, self._total)
        self._every = math.ceil(self._total / EVALUATIONS)
        self._best = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._notes: dict[str, Any] = {"step": 0, "best_step": 0, "best": before, "last": 0}
        self._notes |= {"seconds": 0.0, "curve": []}
        self._stopped = ""

    def run(self, checkpoints: TrainingCheckpoints) -> Distilled:
        """Train to the end, from the checkpoint of an earlier run where there is one."""
        if CHECKPOINT in checkpoints:
            self._load(checkpoints.notes(CHECKPOINT), checkpoints.tensors(CHECKPOINT))
            progress(
                f"{self._step.method} | distillation goes on after step {self._notes['step']} of an interrupted run"
            )
        begun, before, loss = time.monotonic(), self._notes["seconds"], 0.0
        while self._notes["step"] < self._total and not self._stopped:
            loss += self._learn(self._notes["step"])
            self._notes["step"] += 1
            if self._notes["step"] % self._every == 0 or self._notes["step"] == self._total:
                self._notes["seconds"] = before + time.monotonic() - begun
                self._judge(loss / (self._notes["step"] - self._notes["last"]))
                loss, self._notes["last"] = 0.0, self._notes["step"]
                notes = {**self._notes, "total": self._total, "stopped": self._stopped}
                checkpoints.save(CHECKPOINT, self._state(), notes)
        for name, weight in self._weights.items():
            weight.data = self._best[name].clone()
        return Distilled(
            weights=self._student.values(),
            steps=self._notes["step"],
            best_step=self._notes["best_step"],
            stopped=self._stopped or "all steps were made",
            seconds=before + time.monotonic() - begun,
            seen=frozenset(self._order(0, self._notes["step"] * self._rows)),
            curve=tuple((int(step), float(loss)) for step, loss in self._notes["curve"]),
        )

    def _learn(self, step: int) -> float:
        """One step of all optimizers; the loss per token."""
        loss = self._lesson.learn(self._predict, list(self._order(step * self._rows, (step + 1) * self._rows)))
        torch.nn.utils.clip_grad_norm_(self._weights.values(), 1.0)
        self._optimizer.step(schedule(step, self._total))
        return loss

    def _order(self, start: int, stop: int) -> Iterator[int]:
        """Sequences in the order of training; every epoch is shuffled by its own number."""
        count = self._count
        for epoch in range(start // count, -(-stop // count)):
            order = torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist()
            yield from order[max(0, start - epoch * count) : stop - epoch * count]

    def _judge(self, loss: float) -> None:
        """Measure the held-out loss: keep the best weights, see whether to stop and how many steps the time allows."""
        notes, step = self._notes, self._notes["step"]
        with torch.no_grad():
            held = self._lesson.held_out(self._predict)
        notes["curve"].append((step, held))
        if held < notes["best"]:
            notes |= {"best": held, "best_step": step}
            self._best = {name: weight.detach().clone() for name, weight in self._weights.items()}
        elif step - notes["best_step"] >= PATIENCE * self._every and self._total / 2 <= step < self._total:
            self._stopped = f"no better {self._lesson.measure} in {PATIENCE} measurements"
        if self._limit < math.inf and step < self._total:
            left = self._limit - notes["seconds"]
            self._total = min(self._total, step + max(0, int(left / notes["seconds"] * step)))
            if self._total == step:
                self._stopped = "its time was over"
        eta = notes["seconds"] / step * (self._total - step)
        progress(
            f"{self._step.method} | step {step}/{self._total} | loss {loss:.5f} | {self._lesson.measure} {held:.5f}, "
            f"best {notes['best']:.5f} | {notes['seconds']:.0f}s | eta {eta:.0f}s"
        )

    def _state(self) -> dict[str, Tensor]:
        """Everything that a later run needs, as kind|name."""
        weights: dict[str, Tensor] = {f"weight|{name}": weight for name, weight in self._weights.items()}
        best = {f"best|{name}": weight for name, weight in self._best.items()}
        return weights | best | self._optimizer.state(self._weights)

    def _load(self, notes: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Go back to where a checkpoint was written."""
        self._notes = {key: notes[key] for key in self._notes}
        self._total, self._stopped = notes["total"], notes["stopped"]
        for name, weight in self._weights.items():
            weight.data = tensors[f"weight|{name}"].to(self._device)
            self._best[name] = tensors[f"best|{name}"].to(self._device)
        state = {key: value for key, value in tensors.items() if not key.startswith(("weight|", "best|"))}
        self._optimizer.load(self._weights, state)
