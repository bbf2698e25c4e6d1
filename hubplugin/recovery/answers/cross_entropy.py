"""The lesson of a teacher's answers: cross-entropy of their tokens, and of nothing else of a sequence.

Knows rows and logits. Knows no folder and no teacher.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hubplugin.recovery.answers.rows import AnswerRows
from hubplugin.recovery.distillation import logits_of, rows_at_once
from hubplugin.recovery.optimizers import fast_products
from hubplugin.recovery.output_head import cross_entropy, loss_at_head, loss_of
from hubplugin.recovery.trainable import Student


class CrossEntropy:
    """A `distillation.Lesson`: rows to learn from, and rows that are held out."""

    measure = "held-out cross-entropy"

    def __init__(self, train: AnswerRows, held_out: AnswerRows, vocabulary: int, device: str) -> None:
        self._rows, self._held_out, self._vocabulary, self._device = train, held_out, vocabulary, device
        self.train = train.ids

    def learn(self, student: Student, picked: Sequence[int]) -> float:
        """As `Lesson`; the mean is over the answers' tokens of all picked rows."""
        loss, rows = 0.0, _trimmed(self._rows.pick(torch.tensor(picked)))
        count = int(rows.lengths.sum())
        for part in self._parts(rows, student):
            with fast_products(self._device):
                summed = self._summed(student, part)
            share = summed / count
            share.backward()
            loss += float(share.detach())
        return loss

    @torch.no_grad()
    def held_out(self, student: Student) -> float:
        """As `Lesson`."""
        rows = _trimmed(self._held_out)
        total = sum(float(self._summed(student, part)) for part in self._parts(rows, student))
        return total / int(rows.lengths.sum())

    def _parts(self, rows: AnswerRows, student: Student) -> list[AnswerRows]:
        """Rows that pass together."""
        at_once = rows_at_once(rows.ids, self._vocabulary, student.head)
        return [rows.pick(places) for places in torch.arange(len(rows.ids)).split(at_once)]

    def _summed(self, student: Student, rows: AnswerRows) -> Tensor:
        """The cross-entropy in nats of all tokens of answers; a plain head reads nothing else."""
        ids, predicts = rows.ids.to(self._device).long(), rows.answer[:, 1:].to(self._device)
        wanted = ids[:, 1:][predicts]

        def choose(outputs: Tensor) -> Tensor:
            return outputs[:, :-1][predicts]

        if student.head:
            return loss_at_head(student, student.head, ids, choose, (cross_entropy, wanted))
        return loss_of(choose(logits_of(student, ids)), wanted, cross_entropy)


def _trimmed(rows: AnswerRows) -> AnswerRows:
    """Without columns behind the last token of all answers."""
    last = int(rows.answer.any(0).nonzero().max()) + 1
    return AnswerRows(rows.ids[:, :last], rows.answer[:, :last])
