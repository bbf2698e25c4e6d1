"""Prompts and answers as token ids of the student, with the answers' tokens marked. Knows a tokenizer; no model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hubplugin.compress.calibration import vocabulary
from hubplugin.compress.calibration.chat_template import ChatTemplate
from hubplugin.compress.calibration.prompts import Prompt
from hubplugin.errors import CalibrationError
from hubplugin.recovery.answers.cache import Answer

LEAST = 2  # answers: one to learn from, one to hold out


@dataclass(frozen=True)
class AnswerRows:
    """Prompts with their answers, filled up behind with token 0, which no earlier position sees."""

    ids: Tensor  # int32 [answers, tokens]
    answer: Tensor  # bool [answers, tokens]: what the teacher gave, with the token that ends it
    left_out: int = 0  # answers without a word, or whose prompt fills the sequence

    def pick(self, chosen: Tensor) -> "AnswerRows":
        """Some of them, by bool or index [answers]."""
        return AnswerRows(self.ids[chosen], self.answer[chosen])

    @property
    def lengths(self) -> Tensor:
        """How many tokens of each answer are to be predicted [answers]: all but one that nothing stands before."""
        return self.answer[:, 1:].sum(1)

    @property
    def sha256(self) -> str:
        """Of ids and marks."""
        digest = hashlib.sha256(self.ids.numpy().astype("<i4").tobytes())
        digest.update(self.answer.numpy().tobytes())
        return digest.hexdigest()


def rows(
    prompts: Sequence[Prompt], answers: Sequence[Answer], tokenizer: Any, embedding: int | None, length: int
) -> AnswerRows:
    """Every prompt and answer as one sequence of at most `length` tokens.

    A conversation is rendered by the student's chat template up to where the assistant speaks. An answer that its
    teacher ended gets the token that ends a text or a turn, EOS.

    Raises CalibrationError where the student has no chat template for conversations, for tokens without a row of the
    `embedding`, and where fewer than LEAST answers are left.
    """
    template, eos = ChatTemplate(tokenizer, "data"), tokenizer.eos_token_id
    found: list[tuple[list[int], int]] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        text = template.question(prompt.messages) if prompt.turns else prompt.text
        begun = list(tokenizer(text, add_special_tokens=not prompt.turns, verbose=False)["input_ids"])
        said = list(tokenizer(answer.text, add_special_tokens=False, verbose=False)["input_ids"])
        said += [eos] if answer.ended and eos is not None else []
        if answer.text.strip() and 0 < len(begun) < length:
            vocabulary.check([*begun, *said], tokenizer, embedding, "data")
            found.append(((begun + said)[:length], len(begun)))
    if len(found) < LEAST:
        what = f"{len(found)} of {len(answers)} answers can be learnt from"
        raise CalibrationError("answers", what, "use more or shorter prompts, or a greater max_tokens")
    longest = max(len(ids) for ids, _ in found)
    ids, answer_marks = torch.zeros(len(found), longest, dtype=torch.int32), torch.zeros(len(found), longest).bool()
    for row, (sequence, begun_length) in enumerate(found):
        ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int32)
        answer_marks[row, begun_length : len(sequence)] = True
    return AnswerRows(ids, answer_marks, len(answers) - len(found))
