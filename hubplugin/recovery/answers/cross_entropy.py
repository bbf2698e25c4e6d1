"""The lesson of a teacher's answers: cross-entropy of their tokens, and of nothing else of a sequence.

Knows rows and logits. Knows no folder and no teacher.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hubplugin.recovery.answers.rows import AnswerRows
from hubplugin.recovery.distillation import Predictor, logits_of, rows_at_once
from hubplugin.recovery.optimizers import fast_products


class CrossEntropy:
    """A `distillation.Lesson`: rows to learn from, and rows that are held out."""

    measure = "held-out cross-entropy"

    def __init__(self, train: AnswerRows, held_out: AnswerRows, vocabulary: int, device: str) -> None:
        self._rows, self._held_out, self._vocabulary, self._device = train, held_out, vocabulary, device
        self.train = train.ids

    def learn(self, student: Predictor, picked: Sequence[int]) -> float:
        """As `Lesson`; the mean is over the answers' tokens of all picked rows."""
        loss, rows = 0.0, _trimmed(self._rows.pick(torch.tensor(picked)))
        count = int(rows.lengths.sum())
        for part in self._parts(rows):
            with fast_products(self._device):
                logits = logits_of(student, part.ids.long().to(self._device))
            share = summed(logits, part) / count
            share.backward()
            loss += float(share.detach())
        return loss

    @torch.no_grad()
    def held_out(self, student: Predictor) -> float:
        """As `Lesson`."""
        rows = _trimmed(self._held_out)
        parts = self._parts(rows)
        total = sum(float(summed(logits_of(student, part.ids.long().to(self._device)), part)) for part in parts)
        return total / int(rows.lengths.sum())

    def _parts(self, rows: AnswerRows) -> list[AnswerRows]:
        """Rows whose logits are worked on together."""
        return [
            rows.pick(places) for places in torch.arange(len(rows.ids)).split(rows_at_once(rows.ids, self._vocabulary))
        ]


def summed(logits: Tensor, rows: AnswerRows) -> Tensor:
    """The cross-entropy in nats of all tokens of answers, from logits [rows, tokens, vocabulary]."""
    wanted, predicts = rows.ids.to(logits.device).long()[:, 1:], rows.answer.to(logits.device)[:, 1:]
    return functional.cross_entropy(logits[:, :-1][predicts], wanted[predicts], reduction="sum")


def _trimmed(rows: AnswerRows) -> AnswerRows:
    """Without columns behind the last token of all answers."""
    last = int(rows.answer.any(0).nonzero().max()) + 1
    return AnswerRows(rows.ids[:, :last], rows.answer[:, :last])
